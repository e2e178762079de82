"""What travels between a work unit and a replica: batches of items, answered item by item.

A call carries everything a work unit has ready; the replica answers with lists of
(place in the batch, result), each item as soon as it is finished, but for `TICK_S`. While nothing
finishes, an empty list says that the replica is still there.
"""

from dataclasses import dataclass
from typing import TypeAlias

from search.protocols import Carried, Expansion, PolicyPath, PRMPath, Sampling, Score
from search.whole_solutions import SolutionRequest

# How long the next message waits for company, on both ways: a fraction of what a step takes.
TICK_S = 0.004
# A machine whose network is cut refuses nothing, it says nothing.
SIGN_OF_LIFE_S = 4.0
# Longer than any pause of a process that lives: a call given up in error costs its work.
LONGEST_SILENCE_S = 15.0
# A line over which nothing comes for so long is asked for a sign of life, by either end, and is
# ended without one.
HEARTBEAT_S = 20.0


@dataclass(frozen=True, slots=True)
class ExpandItem(Carried):
    """One request to sample n continuations of a path, numbered from `first`.

    `ticket` names the request if it may be given up alone.
    """

    path: PolicyPath
    n: int
    sampling: Sampling
    max_tokens: int
    seed: int
    first: int = 0
    ticket: str = ""


@dataclass(frozen=True, slots=True)
class GiveUp(Carried):
    """Stops the request with this ticket; answered with an empty expansion.

    One that overtakes its request is too late: the request runs to its end, and nobody waits.
    """

    ticket: str


@dataclass(frozen=True, slots=True)
class ScoreItem(Carried):
    """One request to score the last step of a path."""

    path: PRMPath


@dataclass(frozen=True, slots=True)
class Failure(Carried):
    """An item that could not be answered; `error` is meant for the reader of the run."""

    error: Exception


# The number of a message that belongs to no call: the replica takes no new ones.
LEAVING = -1
LEAVES = "the replica leaves, and takes no new calls"

# What a policy replica takes; a whole solution comes back as the expansions of its steps.
PolicyItem: TypeAlias = ExpandItem | GiveUp | SolutionRequest
Written: TypeAlias = Expansion | list[Expansion]
ExpandReply = list[tuple[int, Written | Failure]]
ScoreReply = list[tuple[int, Score | Failure]]
