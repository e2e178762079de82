"""A search that writes ahead: children that it will probably need, in the slots that are free.

Invariants: all is written into a tree of drafts, and a step enters the search's own tree only
when the search asks for it, in the search's own order; so what is written ahead changes no
result. At most `slots` sequences are being written at once. What the search has asked for comes
first: a speculated sequence gives its slot up for it. An error counts when its step is asked for.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from search.growth import Draft, Growth
from search.speculation import CERTAIN, Candidate, Place, Widths, Wish, wishes
from search.tree import ROOT

# Found in virtual time, see docs/strategies.md.
START_CHANCE = 0.5
WHOLE_TREE = 0


@dataclass(slots=True)
class Drafts:
    """Writes what a search asks for, and what it will probably ask for; an async context."""

    growth: Growth
    widths: Widths
    start_chance: float = START_CHANCE
    _drafts: Growth = field(init=False)
    _written: dict[Place, Candidate] = field(default_factory=dict)
    _failed: dict[Place, Exception] = field(default_factory=dict)
    _unused: dict[Place, Draft] = field(default_factory=dict)
    _writing: "dict[Place, asyncio.Task[None]]" = field(default_factory=dict)
    _scoring: "set[asyncio.Task[None]]" = field(default_factory=set)
    _stopping: set[Place] = field(default_factory=set)
    _draft_of: dict[int, int] = field(default_factory=lambda: {ROOT: ROOT})
    _own: dict[int, int] = field(default_factory=lambda: {ROOT: ROOT})
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)

    def __post_init__(self) -> None:
        own = self.growth
        self._drafts = Growth(own.problem, own.policy, own.prm, own.config)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in (*self._writing.values(), *self._scoring):
            task.cancel()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            for draft in self._unused.values():
                self.growth.budget.spend_waste(draft.expansion, draft.scores)

    async def children_of(self, kept: Sequence[int]) -> list[int]:
        """The children of those kept nodes that may have any, as nodes of the search's own tree."""
        now = [self._candidate(node) for node in kept]
        asked = [
            (each.node, number)
            for each in now
            if not each.ended
            for number in range(self.widths.children(each.node))
        ]
        while any(place not in self._written for place in asked):
            self._raise_failure(asked)
            self._write_what_is_likely(now)
            await self._news.wait()
            self._news.clear()
        return [self._take(place) for place in asked]

    def _candidate(self, node: int) -> Candidate:
        """A kept node of the search's own tree; one that ended competes again with its score."""
        if node == ROOT:
            return Candidate(ROOT, 0.0, ended=False)
        ended = self.growth.tree.ends_solution(node)
        return Candidate(self._draft_of[node], self.growth.score(node), ended)

    def _raise_failure(self, asked: Sequence[Place]) -> None:
        for place in asked:
            if place in self._failed:
                raise self._failed[place]

    def _write_what_is_likely(self, kept: Sequence[Candidate]) -> None:
        """Brings what is being written in line with what is wished."""
        wished = list(wishes(kept, self._written, self.widths))
        chance_of = {wish.place: wish.chance for wish in wished}
        for place in self._writing:
            if place not in chance_of:
                self._stop(place)
        new = [wish for wish in wished if self._is_new(wish)]
        certain = [wish for wish in new if wish.chance >= CERTAIN]
        self._make_room(len(certain), chance_of)
        free = self.growth.slots - len(self._writing)
        for wish in (certain + [wish for wish in new if wish.chance < CERTAIN])[: max(0, free)]:
            self._start(wish)

    def _is_new(self, wish: Wish) -> bool:
        begun = (self._writing, self._unused, self._failed)
        return wish.chance >= self.start_chance and not any(wish.place in each for each in begun)

    def _make_room(self, sequences: int, chance_of: dict[Place, float]) -> None:
        """Stops the least likely sequences, as many as are in the way of needed ones."""
        occupied = len(self._writing) - len(self._stopping)
        most = self.growth.slots - sequences
        speculated = [
            place
            for place in self._writing
            if place not in self._stopping and chance_of[place] < CERTAIN
        ]
        speculated.sort(key=lambda place: chance_of[place])
        for place in speculated[: max(0, occupied - most)]:
            self._stop(place)

    def _start(self, wish: Wish) -> None:
        speculated = wish.chance < CERTAIN
        task = self._tasks.create_task(self._write(wish.place, speculated))
        self._writing[wish.place] = task

        def ended(_: "asyncio.Task[None]") -> None:
            # A task that is cancelled before its first step never reaches its own clean-up.
            if self._writing.get(wish.place) is task:
                self._release(wish.place)
            self._scoring.discard(task)

        task.add_done_callback(ended)

    def _stop(self, place: Place) -> None:
        if place not in self._stopping:
            self._stopping.add(place)
            self._writing[place].cancel()

    def _release(self, place: Place) -> "asyncio.Task[None]":
        """Frees the slot of a sequence that is no longer being written."""
        self._stopping.discard(place)
        self._news.set()
        return self._writing.pop(place)

    async def _write(self, place: Place, speculated: bool) -> None:
        """Samples and scores one child; the slot is free again as soon as it is sampled."""
        parent, number = place
        try:
            expansion = await self._drafts.sample(parent, WHOLE_TREE, 1, number)
            self._scoring.add(self._release(place))
            self._unused[place] = Draft(expansion, ())
            if speculated:
                self.growth.budget.spend_speculation(expansion)
            draft = self._unused[place] = await self._drafts.scored(parent, expansion)
            self._written[place] = self._put_draft(place, draft)
        except asyncio.CancelledError:
            self.growth.budget.aborted_generations += place not in self._unused
            raise
        except Exception as error:  # the search may never ask for it
            self._failed[place] = error
        self._news.set()

    def _put_draft(self, place: Place, draft: Draft) -> Candidate:
        parent, number = place
        [node] = self._drafts.put(parent, WHOLE_TREE, draft, number)
        return Candidate(node, self._drafts.score(node), self._drafts.tree.ends_solution(node))

    def _take(self, place: Place) -> int:
        """Puts a draft into the search's own tree."""
        parent, number = place
        draft, source = self._unused.pop(place), self._written[place].node
        [node] = self.growth.put(self._own[parent], WHOLE_TREE, draft, number)
        self._own[source], self._draft_of[node] = node, source
        return node
