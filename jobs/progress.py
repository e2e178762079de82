"""How far one policy's searches are: counts, and a live display of them on a terminal.

Invariant: counts are plain numbers that only the driver's loop changes, so that any thread may
read them.
"""

import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from search.problem import Problem

# What a speed is the mean of.
WINDOW_S = 60.0


# What a `units` row adds to which count.
_OF_A_ROW = {
    "solutions": "solutions",
    "generations": "generations",
    "generated_tokens": "generated_policy_tokens",
    "discarded_tokens": "discarded_policy_tokens",
    "wasted_tokens": "wasted_policy_tokens",
    "prefix_tokens": "prefix_policy_tokens",
    "computed_prefix_tokens": "computed_prefix_policy_tokens",
    "prm_computed_tokens": "computed_prm_tokens",
    "prm_minimal_tokens": "minimal_prm_tokens",
}


@dataclass(slots=True)
class Tally:
    """Counts over the units that came back and the problems that are done.

    The names are those of the metrics (`cluster.metrics`).
    """

    units_done: int = 0
    units_failed: int = 0
    problems_done: int = 0
    answers_graded: int = 0
    answers_correct: int = 0
    solutions: int = 0
    generations: int = 0
    generated_tokens: int = 0
    discarded_tokens: int = 0
    wasted_tokens: int = 0
    prefix_tokens: int = 0
    computed_prefix_tokens: int = 0
    prm_computed_tokens: int = 0
    prm_minimal_tokens: int = 0

    @property
    def units(self) -> int:
        """All that came back."""
        return self.units_done + self.units_failed

    def add_unit(self, units: pa.Table) -> None:
        """Counts one `units` row."""
        [row] = units.to_pylist()
        if row["status"] == "error":
            self.units_failed += 1
        else:
            self.units_done += 1
        for count, column in _OF_A_ROW.items():
            setattr(self, count, getattr(self, count) + (row[column] or 0))

    def finish_problem(self, solutions: pa.Table) -> None:
        """Counts a problem by its graded solutions."""
        self.problems_done += 1
        self.answers_graded += solutions.num_rows
        self.answers_correct += pc.sum(pc.equal(solutions["verdict"], "correct")).as_py() or 0

    @property
    def accuracy(self) -> float:
        """The share of answers that are correct."""
        return self.answers_correct / self.answers_graded if self.answers_graded else 0.0


class Speed:
    """How fast a count has grown of late."""

    def __init__(self, now_s: float) -> None:
        self._counts = deque([(now_s, 0)])

    def add(self, now_s: float, count: int) -> float:
        """Notes what has been counted by now; returns how much came in a second."""
        self._counts.append((now_s, count))
        while len(self._counts) > 2 and self._counts[1][0] < now_s - WINDOW_S:
            self._counts.popleft()
        before_s, before = self._counts[0]
        return (count - before) / max(now_s - before_s, 1e-9)


class ProgressDisplay:
    """Shows one policy's searches: problems, solutions, tokens a second, accuracy, time left."""

    def __init__(self, policy: str, problems: int, units: int, console: Console) -> None:
        self.tally = Tally()
        self.policy, self.problems, self.units = policy, problems, units
        self._started = self.last_news_s = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task(self.policy, total=self.units, facts="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def add_unit(self, units: pa.Table, expected: int) -> None:
        """Counts one unit that came back, of as many as are expected by now."""
        self.units = expected
        self.tally.add_unit(units)
        self._show()

    def finish_problem(self, solutions: pa.Table) -> None:
        """Counts a problem that is graded."""
        self.tally.finish_problem(solutions)
        self._show()

    def skip_problem(self, problem: Problem) -> None:
        """Counts a problem that an earlier process has finished."""
        self.tally.problems_done += 1

    def _show(self) -> None:
        self.last_news_s = time.monotonic()
        done, facts = self.tally.units, self.facts()
        self._bar.update(self._task, completed=done, total=self.units, facts=facts)

    @property
    def left_s(self) -> float | None:
        """How long the rest takes if it goes on like this; None while nothing can be said."""
        if not self.tally.units:
            return None
        spent_s = time.monotonic() - self._started
        return max(0.0, spent_s * (self.units / self.tally.units - 1))

    def facts(self) -> str:
        """One line of numbers."""
        tally, seconds = self.tally, max(time.monotonic() - self._started, 1e-9)
        failed = f", {tally.units_failed} units failed" if tally.units_failed else ""
        return (
            f"{tally.problems_done}/{self.problems} problems, {tally.answers_graded} solutions, "
            f"policy {tally.generated_tokens / seconds:.0f} tokens/s, "
            f"PRM {tally.prm_computed_tokens / seconds:.0f} tokens/s, "
            f"{tally.accuracy:.1%} of solutions correct{failed}"
        )
