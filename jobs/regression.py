"""Whether a night is worse than those before it, by the limits of its recipe.

Invariant: the answer follows from the tables of the partitions alone, so that asking again gives it
again. Only nights whose headline is the same search are compared.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from jobs.headline_settings import RegressionSettings
from jobs.history import HEADLINE, Night, Row, cost_of, ended
from jobs.paired import Correct, Difference, answered, difference, shared_problems
from jobs.results import RECORD, load_record
from search.errors import RecipeError, StorageError, one_line

_WORDS = {"usd": "USD a problem", "flops": "FLOPs a problem", "tokens": "tokens a problem"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """is_worse: whether a limit was exceeded. line: what was found, in one line."""

    is_worse: bool
    line: str


def judge(nights: Sequence[Night], settings: RegressionSettings) -> Verdict:
    """The last of the nights against those before it; one without any is fine."""
    tonight, before = nights[-1], _comparable(nights, settings)
    if tonight.row is None or tonight.row["accuracy"] is None:
        return Verdict(False, f"{tonight.date} has no accuracy to be compared")
    if not before:
        return Verdict(
            False, f"no night before {tonight.date} has the same search: nothing to check"
        )
    found = [each for each in _findings(tonight, before, settings) if each]
    worse = [each.line for each in found if each.is_worse]
    if worse:
        return Verdict(True, f"regression on {tonight.date}: {'; '.join(worse)}")
    return Verdict(False, f"no regression: {'; '.join(each.line for each in found)}")


def judge_recorded(nights: Sequence[Night]) -> Verdict:
    """The last night that has ended, by the recipe that it ran; raises RecipeError if that has no
    section `regression`."""
    over = ended(nights)
    if not over:
        return Verdict(False, "no night has ended: nothing to check")
    recorded = load_record(over[-1].folder, "recipe")["recipe"]
    section = recorded.get("regression")
    if section is None:
        raise RecipeError(
            f"the recipe of {over[-1].folder} has no section regression: add one to have it checked"
        )
    try:
        return judge(over, RegressionSettings.model_validate(section))
    except ValidationError as error:
        line = one_line(error)
        raise StorageError(f"{over[-1].folder.called(RECORD)}: regression: {line}") from None


def _comparable(nights: Sequence[Night], settings: RegressionSettings) -> list[Night]:
    """Ended nights with the same headline, as many as are looked at."""
    tonight = nights[-1]
    before = [
        night
        for night in ended(nights[:-1])
        if night.headline == tonight.headline and night.row and night.row["accuracy"] is not None
    ]
    return before[-(1 if settings.against == "previous" else settings.nights) :]


def _findings(
    tonight: Night, before: list[Night], settings: RegressionSettings
) -> Iterator[Verdict | None]:
    if settings.max_drop is not None:
        yield _accuracy(tonight, _middle(before), settings.max_drop, settings.confident)
    if settings.max_cost_increase is not None:
        yield _cost(tonight, before, settings.max_cost_increase)
    if settings.max_slowdown is not None:
        yield _speed(tonight, before, settings.max_slowdown)


def _middle(before: list[Night]) -> Night:
    """The night in the middle by accuracy: one that was, so that problems can be paired with it."""
    ordered = sorted(before, key=lambda night: _row(night)["accuracy"])
    return ordered[(len(ordered) - 1) // 2]


def _accuracy(tonight: Night, other: Night, max_drop: float, confident: bool) -> Verdict:
    found, how = _difference(other, tonight)
    drops = -found.value > max_drop + 1e-12
    is_worse = drops and (found.high < 0.0 or not confident)
    known = not math.isnan(found.low)
    interval = f", 95 % interval {_points(found.low)} to {_points(found.high)}" if known else ""
    verdict = "" if is_worse or not drops else ", which may be chance"
    return Verdict(
        is_worse,
        f"accuracy {_points(found.value)} points against {other.date} "
        f"({found.first:.1%} to {found.second:.1%}{interval}, {how}){verdict}; "
        f"{100 * max_drop:g} may be lost",
    )


def _difference(other: Night, tonight: Night) -> tuple[Difference, str]:
    """Paired by problem if at least half of the problems are the same, else of two draws."""
    shared = shared_problems(other.folder, tonight.folder)
    if shared.is_most:
        ours, theirs = (_correct(night, tonight.headline) for night in (other, tonight))
        if found := difference(ours, theirs, shared.ids):
            return found, f"{found.problems} problems paired"
    return unpaired(_row(other), _row(tonight)), "other problems, not paired"


def _correct(night: Night, headline: tuple[Any, ...]) -> Correct:
    named = {n: each for n, each in zip(HEADLINE, headline, strict=True) if each is not None}
    return next((each.correct for each in answered(night.folder, named).values()), {})


def unpaired(first: Row, second: Row) -> Difference:
    """Of two means of different problems: Newcombe's interval (1998, Statistics in Medicine 17:873,
    method 10) from the intervals of both."""
    sides = [first["ci_low"], first["ci_high"], second["ci_low"], second["ci_high"]]
    p, q = first["accuracy"], second["accuracy"]
    problems = min(row["problems"] - row["bad_problems"] for row in (first, second))
    if None in sides:
        return Difference(problems, p, q, math.nan, math.nan)
    low = q - p - math.hypot(q - sides[2], sides[1] - p)
    high = q - p + math.hypot(sides[3] - q, p - sides[0])
    return Difference(problems, p, q, low, high)


def _cost(tonight: Night, before: list[Night], most: float) -> Verdict | None:
    """In the first measure that all nights have."""
    for name, now in cost_of(_row(tonight)):
        known = [cost for night in before if (cost := dict(cost_of(_row(night))).get(name))]
        if len(known) == len(before):
            ratio = now / statistics.median(known)
            line = f"{_WORDS[name]} {ratio - 1:+.1%}; {most:.0%} more is allowed"
            return Verdict(ratio > 1 + most + 1e-12, line)
    return None


def _speed(tonight: Night, before: list[Night], most: float) -> Verdict | None:
    name = "policy_tokens_per_second"
    known = [_row(night)[name] for night in before if _row(night)[name]]
    now = _row(tonight)[name]
    if not known or not now:
        return None
    ratio = now / statistics.median(known)
    line = f"policy tokens a second {ratio - 1:+.1%}; {most:.0%} less is allowed"
    return Verdict(ratio < 1 - most - 1e-12, line)


def _row(night: Night) -> Row:
    assert night.row is not None, "only nights that have ended are compared"
    return night.row


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
