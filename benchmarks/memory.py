"""What memory a search takes: a tree for each node, and the driver for a run of many problems.

`python -m benchmarks.memory [--toy] [--trees]`. Trees are grown by a seeded policy with steps of
about 50 tokens and 4 bytes of text a token, all subtrees side by side; counted are all columns as
they are allocated (`sys.getsizeof`), at the moment of the search that is furthest from the goal of
200 bytes a node and 4 a token, and at its end. The driver runs a recipe with fake engines through
Ray in a process of its own, for two numbers of problems; its resident memory is looked at 20 times
a second. A fake policy has one byte a token, so its steps have 200 "tokens", as much text as 50
real ones.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import Result, result, write_results, writes_results
from jobs.settings import LimitSettings
from search.config import Limits, SearchConfig
from search.growth import Growth
from search.problem import Problem
from search.protocols import Completion, Expansion, PolicyPath, Sampling
from search.rewards import Reduction
from search.scripted import FILLER, SeededPolicy, SeededPRM
from search.strategies import STRATEGIES, keep_count, subtree_count
from search.token_ids import count_ids
from search.tree import Tree
from search.whole_solutions import SolutionRequest, step_by_step

GOAL_A_NODE, GOAL_A_TOKEN = 200, 4
TEXT_BYTES_A_TOKEN = 4
STEP_TOKENS, BRANCHING = 50, 4
LIMITS = Limits(max_steps=40, max_step_tokens=1024, max_solution_tokens=8192)
STRATEGY_NAMES = ("dvts", "beam", "best_of_n")
SAMPLE_EVERY_S = 0.05
MB, GB = 1e6, 1e9
GOAL_DRIVER_GB = 2.0


# ---- trees


@dataclass(frozen=True, slots=True)
class TreeBytes:
    """The memory of a tree at one moment of its search."""

    nodes: int
    tokens: int
    text: int
    ids: int
    rest: int

    @property
    def share_of_goal(self) -> float:
        goal = GOAL_A_NODE * self.nodes + GOAL_A_TOKEN * self.tokens
        return (self.text + self.ids + self.rest) / goal

    def a_node(self, number: int) -> str:
        return f"{number / self.nodes:,.0f}"

    @classmethod
    def of(cls, tree: Tree, tokens: int) -> "TreeBytes":
        """All columns as they are allocated, and what they refer to."""
        size = sys.getsizeof
        text = size(tree.texts.utf8)
        ids = size(tree.token_ids)
        ids += sum(size(node) + size(packed) for node, packed in tree.token_ids.items())
        rest = size(tree) + size(tree.texts) + size(tree.texts.offsets)
        columns = [each.name for each in fields(Tree) if each.name not in ("texts", "token_ids")]
        rest += sum(size(getattr(tree, name)) for name in columns) + sum(map(size, tree.solutions))
        return cls(len(tree), tokens, text, ids, rest)


@dataclass(slots=True)
class Watched:
    """A policy with texts of real length, that looks at the tree whenever it is asked.

    Every call gives way to the others, so that all subtrees are under way together.
    """

    policy: SeededPolicy
    smallest: int
    tree: Tree = field(default_factory=Tree)
    tokens: int = 0
    worst: TreeBytes | None = None

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """The same steps with `TEXT_BYTES_A_TOKEN` bytes of text a token."""
        await asyncio.sleep(0)
        self.look()
        return self._longer(await self.policy.expand(path, n, sampling, max_tokens, seed, first))

    async def write(self, request: SolutionRequest) -> list[Expansion]:
        """The same for a whole solution: until it is written it is the replica's to hold."""
        await asyncio.sleep(0)
        self.look()
        return [self._longer(step) for step in await step_by_step(self.policy, request)]

    def _longer(self, found: Expansion) -> Expansion:
        self.tokens += sum(count_ids(each.token_ids) for each in found.completions)
        return replace(found, completions=tuple(map(_in_words, found.completions)))

    def look(self) -> None:
        """Keeps the moment that is furthest from the goal; the first few nodes do not count."""
        if len(self.tree) >= self.smallest:
            now = TreeBytes.of(self.tree, self.tokens)
            if self.worst is None or now.share_of_goal > self.worst.share_of_goal:
                self.worst = now


def _in_words(step: Completion) -> Completion:
    longer = FILLER * ((TEXT_BYTES_A_TOKEN - 1) * count_ids(step.token_ids))
    return replace(step, text=longer + step.text)


def grown_tree(strategy: str, n: int, step_tokens: float = STEP_TOKENS) -> tuple[TreeBytes, ...]:
    """A whole search of one problem: its worst moment and its end."""
    branching = BRANCHING if STRATEGIES[strategy].branches else 1
    keep = keep_count(strategy, n, branching)
    config = SearchConfig(strategy, n, branching, keep, Reduction.LAST, 1, LIMITS)
    watched = Watched(SeededPolicy(step_tokens=step_tokens), smallest=n)
    prm = SeededPRM() if STRATEGIES[strategy].uses_prm else None
    growth = Growth(Problem("p", "1 + 1 =", "2"), watched, prm, config)
    watched.tree = growth.tree
    subtrees = range(subtree_count(strategy, n, branching))
    asyncio.run(STRATEGIES[strategy].grow(growth, subtrees))
    watched.look()
    assert watched.worst is not None
    return watched.worst, TreeBytes.of(growth.tree, watched.tokens)


def tree_table(sizes: Sequence[int]) -> Table:
    heads = ("tree", "when", "nodes", "tokens a node", "text", "token ids", "rest", "all / goal")
    table = Table(*heads, title="bytes a node")
    for strategy in STRATEGY_NAMES:
        for n in sizes:
            for when, found in zip(("worst", "end"), grown_tree(strategy, n), strict=True):
                parts = (found.tokens, found.text, found.ids, found.rest)
                share = f"{found.share_of_goal:.2f}"
                label = f"{strategy}, N = {n}"
                table.add_row(label, when, str(found.nodes), *map(found.a_node, parts), share)
    return table


# ---- the driver


@dataclass(frozen=True, slots=True)
class DriverRun:
    """One run: resident memory of the driver at its start and at most, and what it did.

    `private` is resident memory that is not shared: without Ray's object store and library code.
    """

    problems: int
    n: int
    start_bytes: int
    peak_bytes: int
    peak_private_bytes: int
    nodes: int
    folder_bytes: int
    seconds: float

    def result(self) -> Result:
        what = f"GB of the driver, N = {self.n} x {self.problems} problems"
        apart = "Ray and libraries are a third of it"
        return result(what, GOAL_DRIVER_GB, [self.peak_bytes / GB], apart, at_most=True)

    def line(self) -> str:
        return (
            f"N = {self.n} x {self.problems} problems: the driver has {self.start_bytes / MB:,.0f} "
            f"MB at its start and {self.peak_bytes / MB:,.0f} at most, "
            f"{self.peak_private_bytes / MB:,.0f} of its own; {self.nodes:,} nodes, "
            f"{self.folder_bytes / MB:,.0f} MB of tables, {self.seconds:,.0f} s"
        )


def driver_runs(n: int, counts: Sequence[int]) -> Iterator[DriverRun]:
    """A process of its own for each: what one has freed must not help the next."""
    for problems in counts:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as process:
            yield process.submit(driver_run, n, problems).result()


def driver_run(n: int, problems: int) -> DriverRun:
    """Runs a recipe in this process, which is the driver."""
    from jobs.driver import run_recipe
    from jobs.recipe import parse_recipe

    logging.getLogger("branchwise").setLevel(logging.WARNING)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        recipe = parse_recipe(_recipe(Path(folder), n, problems))
        outcome, memory = _watching(lambda: run_recipe(recipe, None, Console(quiet=True)))
        return DriverRun(
            problems,
            n,
            *memory,
            nodes=_rows(outcome.folder / "nodes.parquet"),
            folder_bytes=sum(path.stat().st_size for path in outcome.folder.iterdir()),
            seconds=time.perf_counter() - started,
        )


def _recipe(folder: Path, n: int, problems: int) -> dict[str, Any]:
    rows = ({"id": f"p{i}", "problem": f"{i} + 1 =", "answer": "42"} for i in range(problems))
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fake = {"model": "fake", "engine": "fake"}
    steps = {"step_tokens": float(TEXT_BYTES_A_TOKEN * STEP_TOKENS)}
    return {
        "name": "memory",
        "data": {"source": str(folder / "problems.jsonl")},
        "policies": [{**fake, "name": "fake", "options": steps}],
        "prm": {**fake, "family": "qwen2.5-math-prm"},
        "searches": [{"strategy": "dvts", "n": n, "branching": BRANCHING}],
        "limits": {name: getattr(LIMITS, name) for name in LimitSettings.model_fields},
        "runs_folder": str(folder),
    }


def _watching(work: Callable[[], Any]) -> tuple[Any, tuple[int, int, int]]:
    """What the work returns; resident bytes at its start and at most, and those not shared."""
    import psutil

    process, done = psutil.Process(), threading.Event()
    start = process.memory_info().rss
    peaks = [start, 0]

    def watch() -> None:
        while not done.wait(SAMPLE_EVERY_S):
            now = process.memory_info()
            peaks[:] = max(peaks[0], now.rss), max(peaks[1], now.rss - now.shared)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return work(), (start, *peaks)
    finally:
        done.set()
        thread.join()


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="small, to see that it works")
    parser.add_argument("--trees", action="store_true", help="the trees only, without Ray")
    writes_results(parser)
    options = parser.parse_args(arguments)
    console, sizes = Console(width=110), (16,) if options.toy else (64, 512)
    console.print(tree_table(sizes))
    results = [_tree_result(name, sizes[-1]) for name in STRATEGY_NAMES]
    if not options.trees:
        n, counts = (16, (2, 10)) if options.toy else (512, (100, 500))
        for run in driver_runs(n, counts):
            console.print(run.line())
            results.append(run.result())
    how = " --trees" if options.trees else ""
    write_results(options.to, f"python -m benchmarks.memory{how}", results)


def _tree_result(strategy: str, n: int) -> Result:
    what = f"memory of a tree at its worst over the goal, {strategy}, N = {n}"
    worst, _ = grown_tree(strategy, n)
    return result(what, 1.0, [worst.share_of_goal], "the texts themselves", at_most=True)


if __name__ == "__main__":
    main()
