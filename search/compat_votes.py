"""Votes as two published systems count them, to the tie: for comparing with their tables.

Both look at solutions in the order in which the system has them and name one of them, whose
answer is the system's. Sums are added in that order, so that even rounding is theirs.
docs/strategies.md sets them beside the votes of `search.votes`.
"""

from collections.abc import Hashable, Sequence
from enum import StrEnum

from search.rewards import Reduction, reduce_rewards
from search.votes import Vote

# compute-optimal-tts gives a solution without any score this value.
NO_SCORES = -1.0


class VoteRule(StrEnum):
    """`search_and_learn` (huggingface); `compute_optimal_tts` (arXiv 2502.06703)."""

    SEARCH_AND_LEARN = "search_and_learn"
    COMPUTE_OPTIMAL_TTS = "compute_optimal_tts"


def search_and_learn_winner(
    classes: Sequence[int], last_rewards: Sequence[float], vote: Vote
) -> int | None:
    """The place of the solution whose answer wins; None only where there is no solution.

    classes: answers in the same canonical form; an empty answer is a form like any other and may
    win. last_rewards: whatever a search was guided by, these votes are by the last reward. Of
    equal sums, counts or rewards the first to appear wins. (score.py, math.py at 6f81cac.)
    """
    return _winner(classes, last_rewards, vote)


def compute_optimal_tts_winner(
    answers: Sequence[str], scores: Sequence[float], vote: Vote
) -> int | None:
    """The place of the solution whose answer wins; None where no solution has an answer.

    Only equal strings count together; solutions without an answer are dropped before the vote.
    Of equal sums, counts or scores the first to appear wins. (vote_utils.py at 0ee2578.)
    """
    voting = [place for place, answer in enumerate(answers) if answer]
    found = _winner([answers[p] for p in voting], [scores[p] for p in voting], vote)
    return None if found is None else voting[found]


def compute_optimal_tts_score(rewards: Sequence[float], reduction: Reduction) -> float:
    """A solution's score; `NO_SCORES` without a reward, where Branchwise takes 0."""
    return reduce_rewards(rewards, reduction) if rewards else NO_SCORES


def _winner(keys: Sequence[Hashable], scores: Sequence[float], vote: Vote) -> int | None:
    """The first solution of the winning key; dictionaries and `max` both take the first."""
    if not keys:
        return None
    if vote is Vote.MAX:
        return max(range(len(scores)), key=scores.__getitem__)
    sums: dict[Hashable, float] = {}
    for key, score in zip(keys, scores, strict=True):
        sums[key] = sums.get(key, 0.0) + (score if vote is Vote.WEIGHTED else 1.0)
    return keys.index(max(sums, key=sums.__getitem__))
