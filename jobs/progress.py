"""How far a run is: a live display on a terminal, plain log lines elsewhere."""

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
log = logging.getLogger("branchwise")


@dataclass(slots=True)
class Tally:
    """Counts over the units that came back. `came_back`: of problems that are under way."""

    units_a_problem: int
    units: int = 0
    failed: int = 0
    solutions: int = 0
    correct: int = 0
    policy_tokens: int = 0
    prm_tokens: int = 0
    came_back: Counter[str] = field(default_factory=Counter)
    problems: int = 0

    def add(self, units: pa.Table, solutions: pa.Table) -> None:
        """Counts one unit: its `units` row and its graded solutions."""
        [row] = units.to_pylist()
        self.units += 1
        self.failed += row["status"] == "error"
        self.solutions += solutions.num_rows
        self.correct += pc.sum(pc.equal(solutions["verdict"], "correct")).as_py() or 0
        self.policy_tokens += row["generated_policy_tokens"] or 0
        self.prm_tokens += row["computed_prm_tokens"] or 0
        self._count(row["problem_id"])

    def _count(self, problem_id: str) -> None:
        self.came_back[problem_id] += 1
        if self.came_back[problem_id] == self.units_a_problem:
            del self.came_back[problem_id]
            self.problems += 1


class ProgressDisplay:
    """Shows one policy's searches: problems, solutions, tokens a second, accuracy, time left."""

    def __init__(self, policy: str, problems: int, units_a_problem: int, console: Console) -> None:
        self.tally = Tally(units_a_problem)
        self._policy, self._console = policy, console
        self._units, self._problems = problems * units_a_problem, problems
        self._started = self._last_line = time.monotonic()
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
        self._task = self._bar.add_task(self._policy, total=self._units, facts="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if error is None:
            log.info("%s done: %s", self._policy, self.facts())

    def update(self, units: pa.Table, solutions: pa.Table) -> None:
        """Counts one unit that came back."""
        self.tally.add(units, solutions)
        self._bar.update(self._task, completed=self.tally.units, facts=self.facts())
        if not self._console.is_terminal:
            self._log_now_and_then()

    def facts(self) -> str:
        """One line of numbers."""
        tally, seconds = self.tally, max(time.monotonic() - self._started, 1e-9)
        accuracy = tally.correct / tally.solutions if tally.solutions else 0.0
        failed = f", {tally.failed} units failed" if tally.failed else ""
        return (
            f"{tally.problems}/{self._problems} problems, {tally.solutions} solutions, "
            f"policy {tally.policy_tokens / seconds:.0f} tokens/s, "
            f"PRM {tally.prm_tokens / seconds:.0f} tokens/s, "
            f"{accuracy:.1%} of solutions correct{failed}"
        )

    def _log_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = (now - self._started) * (self._units / self.tally.units - 1)
        log.info("%s: %s, %.0f s left", self._policy, self.facts(), left)
