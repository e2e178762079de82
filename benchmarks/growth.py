"""What grows with the number of problems: the memory of every process of a long run.

`python -m benchmarks.growth [--problems 20000] [--toy]`. Tiny problems are searched through Ray by
fake engines, best of two. 50 times a second a process of its own looks at the driver and at all
that it started; a worker also notes what it holds after each task. Counted is the least that a
process held in each twentieth of the run, for rows come and go between two commits. A process is
flat if it holds at the end what it held at half; before, buffers of a fixed size fill and each
thread's allocator takes its share. The slope is Theil and Sen's over the second half, with its 95 %
interval. A run of a tenth of the problems comes before, to compare what the driver held at most.
The problems as they were read are the driver's to hold: `tracemalloc` counts them.
"""

import argparse
import json
import logging
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.process_memory import (
    DRIVER,
    OTHER,
    WORKER,
    Watch,
    Watched,
    noting_task,
    private_bytes,
    read_notes,
)
from benchmarks.results import Result, result, write_results, writes_results

PROBLEMS, TOY_PROBLEMS = 20_000, 200
STRETCHES, WARM_UP = 20, 0.1
N = 2
# Rows wait for the next commit; each stretch of the run is to have one.
CHECKPOINT_INTERVAL_S = 2.0
# Of 200 MB that is 4 MB, which allocators keep or not: 400 bytes for each problem of the half.
GOAL_RATIO = 1.02
MB = 1e6
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Growth:
    """What one process held as a run went on, from its warm-up to the end of the searches.

    slope: bytes for each of what is counted (`per`) in the second half, with its 95 % interval.
    most: until the end of the run.
    """

    process: str
    per: str
    count: int
    first_bytes: int
    middle_bytes: int
    last_bytes: int
    slope: tuple[float, float, float]
    most_bytes: int

    @classmethod
    def of(
        cls, process: str, per: str, points: Sequence[tuple[int, int]], most_bytes: int
    ) -> "Growth":
        """points: what was counted by then, and bytes, in order."""
        from scipy.stats import theilslopes

        count = points[-1][0]
        first = next(size for counted, size in points if counted >= WARM_UP * count)
        counts, sizes = zip(*(p for p in points if p[0] >= count / 2), strict=True)
        slope, _, low, high = map(float, theilslopes(sizes, counts))
        ends = (first, sizes[0], sizes[-1])
        return cls(process, per, count, *ends, (slope, low, high), most_bytes)

    @property
    def ratio(self) -> float:
        """What it held at the end over what it held at half."""
        return self.last_bytes / self.middle_bytes

    def row(self) -> tuple[str, ...]:
        middle, low, high = (f"{side:,.0f}" for side in self.slope)
        held = (self.first_bytes, self.middle_bytes, self.last_bytes)
        sizes = (f"{size / MB:,.1f}" for size in held)
        counted = f"{self.count:,} {self.per}s"
        most = f"{self.most_bytes / MB:,.1f}"
        return self.process, counted, *sizes, f"{self.ratio:.3f}", middle, f"{low} to {high}", most


@dataclass(frozen=True, slots=True)
class LongRun:
    """One run: its processes, and the driver before the run, in the searches and after them."""

    problems: int
    growths: list[Growth]
    start_bytes: int
    search_most_bytes: int
    search_last_bytes: int
    end_most_bytes: int
    table_bytes: int
    seconds: float

    @property
    def most_bytes(self) -> int:
        return max(self.search_most_bytes, self.end_most_bytes)

    def line(self) -> str:
        return (
            f"{self.problems:,} problems: the driver held {self.start_bytes / MB:,.0f} MB before, "
            f"at most {self.search_most_bytes / MB:,.0f} in the searches, "
            f"{self.search_last_bytes / MB:,.0f} at their end and at most "
            f"{self.end_most_bytes / MB:,.0f} while tables were written "
            f"({self.table_bytes / MB:,.0f} MB in memory); {self.seconds:,.0f} s"
        )


# ---- a run


def in_a_process(work: Callable[..., Answer], *arguments: Any) -> Answer:
    """What one run has freed must not help the next."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(work, *arguments).result()


def long_run(problems: int, interval_s: float) -> LongRun:
    """Runs a recipe in this process, which is the driver."""
    import psutil

    from jobs.driver import run_recipe
    from jobs.recipe import parse_recipe

    logging.getLogger("branchwise").setLevel(logging.WARNING)
    started, every = time.perf_counter(), max(1, problems // STRETCHES)
    with tempfile.TemporaryDirectory() as where:
        folder, watch = Path(where), Watch(every)
        recipe = parse_recipe(_recipe(folder, problems, interval_s))
        (folder / "notes").mkdir()
        _note_progress(watch, folder / "notes")
        start_bytes = private_bytes(psutil.Process())
        with watch.looking():
            outcome = run_recipe(recipe, None, Console(quiet=True))
        if outcome.failed_units or outcome.bad_problems:
            raise RuntimeError(f"{outcome.failed_units} units failed")
        notes = read_notes(folder / "notes")
        found, size = watch.found, sum(map(_in_memory, outcome.folder.glob("*.parquet")))
    [driver] = (each for each in found if each.kind == DRIVER)
    searches, last = range(problems // every), problems // every - 1
    return LongRun(
        problems,
        list(growths(found, notes, problems, every)),
        start_bytes,
        max(driver.most[stretch] for stretch in searches),
        driver.least[last],
        driver.most[last + 1],
        size,
        time.perf_counter() - started,
    )


def growths(
    found: Sequence[Watched], notes: dict[int, list[tuple[int, int]]], problems: int, every: int
) -> Iterator[Growth]:
    """The processes that were there all the time, and the worker that ran most units."""
    busiest = max(notes, key=lambda pid: notes[pid][-1])
    for process in found:
        most, last = max(process.most.values()), problems // every - 1
        stretches = sorted(each for each in process.least if each <= last)
        if process.pid == busiest:
            yield Growth.of(WORKER, "unit", notes[busiest], most)
        elif process.kind != OTHER and process.pid not in notes and last in stretches:
            points = [((each + 1) * every, process.least[each]) for each in stretches]
            yield Growth.of(process.kind, "problem", points, most)


def _note_progress(watch: Watch, notes: Path) -> None:
    """Units that come back count as problems, of which each has one; workers note themselves."""
    from cluster import fanout
    from jobs import driver

    watched_driver: Any = driver
    watched_fanout: Any = fanout
    run_units = watched_driver.run_units

    async def counted(*arguments: Any) -> Any:
        async for done in run_units(*arguments):
            watch.advance()
            yield done

    watched_driver.run_units = counted
    watched_fanout.work_units_task = noting_task(fanout.work_units_task, notes)


def _recipe(folder: Path, problems: int, interval_s: float) -> dict[str, Any]:
    fake = {"model": "fake", "engine": "fake"}
    return {
        "name": "growth",
        "data": {"source": str(_problem_file(folder, problems))},
        "policies": [{**fake, "name": "fake", "options": {"mean_steps": 1, "spread": 0}}],
        "prm": {**fake, "family": "qwen2.5-math-prm"},
        "searches": [{"strategy": "best_of_n", "n": N}],
        "work": {"checkpoint_interval_s": interval_s},
        "runs_folder": str(folder),
    }


def _problem_file(folder: Path, problems: int) -> Path:
    rows = ({"id": f"p{i:06}", "problem": f"{i} + 1 =", "answer": "42"} for i in range(problems))
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _in_memory(path: Path) -> int:
    """Bytes of a table when all of it is read."""
    import pyarrow.parquet as pq

    return int(pq.read_table(path).nbytes)


# ---- the problems as they were read


def read_problems(problems: int) -> tuple[float, float]:
    """Bytes a problem that reading leaves, and that it takes while it goes on."""
    from jobs.data import DataSource, load_problems

    with tempfile.TemporaryDirectory() as where:
        source = DataSource(source=str(_problem_file(Path(where), problems)))
        tracemalloc.start()
        held = load_problems([source])
        kept, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return kept / len(held), most / len(held)


# ---- what is printed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, help="of the long run; a tenth before")
    parser.add_argument("--checkpoint-interval-s", type=float, default=CHECKPOINT_INTERVAL_S)
    parser.add_argument("--toy", action="store_true", help="small, to see that it works")
    writes_results(parser)
    options = parser.parse_args(arguments)
    problems = options.problems or (TOY_PROBLEMS if options.toy else PROBLEMS)
    console = Console(width=150)
    kept, most = in_a_process(read_problems, problems)
    console.print(f"a problem as it was read: {kept:,.0f} bytes, {most:,.0f} while it is read")
    runs = []
    for count in (problems,) if options.toy else (problems // 10, problems):
        runs.append(in_a_process(long_run, count, options.checkpoint_interval_s))
        console.print(runs[-1].line())
    console.print(table(runs[-1]))
    if not options.toy:
        console.print(f"the driver at most: {_more(*runs):,.0f} bytes more for a problem more")
    write_results(options.to, "python -m benchmarks.growth", results(runs[-1]))


def _more(short: LongRun, long: LongRun) -> float:
    return (long.most_bytes - short.most_bytes) / (long.problems - short.problems)


def table(run: LongRun) -> Table:
    heads = ("MB at a tenth", "at half", "at the end", "end / half", "slope", "95 %", "at most")
    title = "resident memory that is not shared, MB; slope in bytes over the second half"
    found = Table("process", "after", *heads, title=title)
    for growth in run.growths:
        found.add_row(*growth.row())
    return found


def results(run: LongRun) -> list[Result]:
    """The two that the goal is about."""
    return [
        result(
            f"memory of the {growth.process} after {growth.count:,} {growth.per}s, over half-way",
            GOAL_RATIO,
            [growth.ratio],
            "the allocator",
            at_most=True,
        )
        for growth in run.growths
        if growth.process in (DRIVER, WORKER)
    ]


if __name__ == "__main__":
    main()
