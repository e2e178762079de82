"""Checks of the keys that change a strategy's rule: each means something for some rules only."""

from collections.abc import Iterator

from jobs.settings import SearchSettings
from search.config import WIDTH_TEMPERATURE, Compat
from search.rewards import Reduction
from search.strategies import STRATEGIES

# How search-and-learn can reduce the rewards of a path.
_SEARCH_AND_LEARN = (Reduction.LAST, Reduction.MIN, Reduction.PROD)


def rule_complaints(where: str, search: SearchSettings) -> Iterator[str]:
    """What to change, one line a complaint."""
    chooses = STRATEGIES[search.strategy].branches
    if search.lookahead and not chooses:
        yield f"{where}.lookahead: {search.strategy} does not look ahead: remove it"
    if search.score_every > 1 and not chooses:
        yield f"{where}.score_every: {search.strategy} chooses no candidates by score: remove it"
    if search.width_temperature != WIDTH_TEMPERATURE and search.strategy != "rebase":
        yield f"{where}.width_temperature: {search.strategy} divides no width: remove it"
    if search.compat_options and not _has_options(search):
        yield f"{where}.compat_options: only the beam of search_and_learn has them: remove it"
    if search.compat:
        yield from _compat_complaints(where, search, search.compat)


def _compat_complaints(where: str, search: SearchSettings, compat: Compat) -> Iterator[str]:
    if compat not in STRATEGIES[search.strategy].published:
        yield f"{where}.compat: {compat} has no rule for {search.strategy}: remove it"
    elif STRATEGIES[search.strategy].branches:
        if search.score_every > 1:
            yield f"{where}.score_every: {compat} scores every step: remove it"
        if search.lookahead and not _looks_ahead(search, compat):
            yield f"{where}.lookahead: {compat} scores {search.strategy} without it: remove it"
        yield from _reduction_complaints(where, search, compat)


def _has_options(search: SearchSettings) -> bool:
    return search.compat is Compat.SEARCH_AND_LEARN and search.strategy == "beam"


def _looks_ahead(search: SearchSettings, compat: Compat) -> bool:
    return compat is Compat.SEARCH_AND_LEARN and search.strategy == "dvts"


def _reduction_complaints(where: str, search: SearchSettings, compat: Compat) -> Iterator[str]:
    if search.reduction is Reduction.LAST:
        return
    if compat is Compat.COMPUTE_OPTIMAL_TTS:
        yield f"{where}.reduction: {compat} keeps by the last reward: use last"
    elif search.reduction not in _SEARCH_AND_LEARN:
        yield f"{where}.reduction: {compat} has no {search.reduction}: use last, min or prod"
    elif search.lookahead:
        yield f"{where}.reduction: with lookahead {compat} can be followed for last only: use last"
