"""How far a run is: a live display on a terminal, plain log lines elsewhere."""

import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from search.problem import Problem

SECONDS_BETWEEN_LINES = 10.0
log = logging.getLogger("branchwise")


@dataclass(slots=True)
class Tally:
    """Counts over the units that came back and the problems that are done."""

    units: int = 0
    failed: int = 0
    problems: int = 0
    solutions: int = 0
    correct: int = 0
    policy_tokens: int = 0
    prm_tokens: int = 0

    def add_unit(self, units: pa.Table) -> None:
        """Counts one `units` row."""
        [row] = units.to_pylist()
        self.units += 1
        self.failed += row["status"] == "error"
        self.policy_tokens += row["generated_policy_tokens"] or 0
        self.prm_tokens += row["computed_prm_tokens"] or 0

    def finish_problem(self, solutions: pa.Table) -> None:
        """Counts a problem by its graded solutions."""
        self.problems += 1
        self.solutions += solutions.num_rows
        self.correct += pc.sum(pc.equal(solutions["verdict"], "correct")).as_py() or 0


class ProgressDisplay:
    """Shows one policy's searches: problems, solutions, tokens a second, accuracy, time left."""

    def __init__(self, policy: str, problems: int, units: int, console: Console) -> None:
        self.tally = Tally()
        self._policy, self._console = policy, console
        self._problems, self._units = problems, units
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

    def add_unit(self, units: pa.Table, expected: int) -> None:
        """Counts one unit that came back, of as many as are expected by now."""
        self._units = expected
        self.tally.add_unit(units)
        self._show()

    def finish_problem(self, solutions: pa.Table) -> None:
        """Counts a problem that is graded."""
        self.tally.finish_problem(solutions)
        self._show()

    def skip_problem(self, problem: Problem) -> None:
        """Counts a problem that an earlier process has finished."""
        self.tally.problems += 1

    def _show(self) -> None:
        done, facts = self.tally.units, self.facts()
        self._bar.update(self._task, completed=done, total=self._units, facts=facts)
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
