"""Budgets that problems share: what settled ones did not need, or one divided by weight.

Invariant: who gets how much depends on the order of the problems in the recipe and on what each
of them did, never on which of them was done first.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Wish:
    """An undecided problem that takes up to so many solutions more."""

    most: int
    granted: "asyncio.Future[int]"


@dataclass(slots=True)
class SavedBudget:
    """A pool that problems fill and empty in their order, 0, 1, 2, ...

    A problem's turn comes when all before it have said what they did. `group`: solutions are
    granted in multiples of it.
    """

    group: int
    left: int = 0
    _turn: int = 0
    _said: "dict[int, int | _Wish]" = field(default_factory=dict)

    def save(self, place: int, solutions: int) -> None:
        """Problem `place` has settled and leaves so many solutions."""
        self._said[place] = solutions
        self._advance()

    async def grant(self, place: int, most: int) -> int:
        """What undecided problem `place` may spend more, at most `most`."""
        wish = _Wish(most, asyncio.get_running_loop().create_future())
        self._said[place] = wish
        self._advance()
        return await wish.granted

    def _advance(self) -> None:
        while (said := self._said.pop(self._turn, None)) is not None:
            self._turn += 1
            if isinstance(said, _Wish):
                granted = min(said.most, self.left) // self.group * self.group
                self.left -= granted
                said.granted.set_result(granted)
            else:
                self.left += said


@dataclass(slots=True)
class SharedBudget:
    """One budget divided by weight, when all `problems` have said theirs.

    groups: what there is for all problems together.
    """

    groups: int
    problems: int
    _weights: dict[int, float] = field(default_factory=dict)
    _shares: list[int] = field(default_factory=list)
    _is_divided: asyncio.Event = field(default_factory=asyncio.Event)

    async def share(self, place: int, weight: float) -> int:
        """The groups of problem `place`; waits for all others."""
        self._weights[place] = weight
        if len(self._weights) == self.problems:
            self._shares = divided(self.groups, [self._weights[i] for i in range(self.problems)])
            self._is_divided.set()
        await self._is_divided.wait()
        return self._shares[place]


def divided(whole: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `whole`, in proportion to the weights as nearly as they can be.

    By largest remainder; of equal ones the first. Weights that sum to nothing count as equal.
    """
    total = math.fsum(weights)
    parts = [w / total if total > 0 else 1 / len(weights) for w in weights]
    shares = [math.floor(whole * part) for part in parts]
    left = max(0, whole - sum(shares))
    by_remainder = sorted(range(len(parts)), key=lambda i: shares[i] - whole * parts[i])
    for place in by_remainder[:left]:
        shares[place] += 1
    return shares
