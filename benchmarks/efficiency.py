"""Search against the engine's own speed: policy tokens a second, over those of the raw engine.

`python -m benchmarks.efficiency [--toy]`. Raw: every request of a search, known in advance, put
into the engine at once from one asyncio loop in this process. Search: the same requests as the
search comes to them, through Ray tasks and Serve, with an engine of the same flags. A random
policy writes steps of about 48 tokens (geometric, so as uneven as steps get); the PRM is a fake on
Serve that takes no time, so that what is lost is ours and not the PRM's. Both engines are up all
the time, their caches are emptied before each measurement, and raw and search take turns.
"""

import argparse
import asyncio
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.engines import load_policy_engine
from actors.prompts import PROBLEM, PromptStyle
from actors.spec import ModelSpec
from actors.wire import ExpandItem
from benchmarks.engines import random_checkpoints
from benchmarks.results import Result, result, write_results, writes_results
from cluster.admission import admission_of
from cluster.connect import connected
from cluster.deploy import deployed
from cluster.fanout import Site, run_units
from search.config import Limits, SearchConfig
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.protocols import Expansion, PolicyPath, Sampling
from search.rewards import Reduction
from search.scripted import SeededPRM
from search.strategies import keep_count
from search.token_ids import count_ids

BRANCHING, BATCH, SOLUTIONS_PER_UNIT = 4, 64, 64
QUESTION = "one two three four five six seven eight nine ten " * 8
# One token in 48 of the random policy's holds these letters.
DELIMITER = "in"
LIMITS = Limits(max_steps=3, max_step_tokens=200, max_solution_tokens=600, stop_at_boxed=False)
TOY_LIMITS = Limits(max_steps=2, max_step_tokens=8, max_solution_tokens=16, stop_at_boxed=False)
UNIT_TIMEOUT_S = 900.0
GOAL = 0.9


@dataclass(frozen=True, slots=True)
class Work:
    """One search over several problems."""

    strategy: str
    n: int
    problems: int
    limits: Limits

    def units(self) -> Iterator[WorkUnit]:
        keep = keep_count(self.strategy, self.n, BRANCHING)
        sampling = Sampling(delimiter=DELIMITER)
        config = SearchConfig(
            self.strategy, self.n, BRANCHING, keep, Reduction.LAST, 1, self.limits, sampling
        )
        for place in range(self.problems):
            problem = Problem(f"p{place}", f"{place} {QUESTION}", "0")
            yield from partition(problem, config, SOLUTIONS_PER_UNIT)


FULL = [
    Work(strategy, n, problems, LIMITS)
    for strategy in ("beam", "dvts")
    for n, problems in ((16, 32), (64, 8), (256, 2))
]
TOY = [Work("dvts", 8, 2, TOY_LIMITS)]


@dataclass(slots=True)
class Recording:
    """An engine as a policy, which keeps what it is asked for."""

    engine: Any
    items: list[ExpandItem] = field(default_factory=list)

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """See `search.protocols.Policy`."""
        item = ExpandItem(path, n, sampling, max_tokens, seed, first)
        self.items.append(item)
        found: Expansion = await self.engine.expand(item)
        return found


@dataclass(frozen=True, slots=True)
class Speeds:
    """Policy tokens a second of each repetition.

    Raw is measured before and after each search, which is compared with the mean of the two: else
    a machine that becomes slower meanwhile looks like a search that is.
    """

    raw: list[float] = field(default_factory=list)
    search: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        around = map(statistics.mean, pairwise(self.raw))
        return [mine / raw for mine, raw in zip(self.search, around, strict=True)]

    def result(self, work: Work) -> Result:
        what = f"search over raw tokens/s, {work.strategy}, N = {work.n}"
        return result(what, GOAL, self.ratios(), "calls and start and end, on the engine's cores")

    def row(self, work: Work) -> tuple[str, ...]:
        ratios = self.ratios()
        return (
            f"{work.strategy}, N = {work.n}, {work.problems} problems",
            f"{statistics.median(self.raw):,.0f}",
            f"{statistics.median(self.search):,.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--repetitions", type=int, default=5)
    writes_results(parser)
    options = parser.parse_args(arguments)
    logging.getLogger("branchwise").setLevel(logging.WARNING)
    # Ray's workers would else yield to this process, and the two engines not be equals.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's spelling)
    heads = ("search", "raw tokens/s", "through Serve", "ratio (median)", "spread")
    table = Table(*heads, title=f"efficiency ({options.engine}, float32, batch {BATCH})")
    with tempfile.TemporaryDirectory() as folder:
        spec = policy_spec(options.engine, Path(folder))
        works = TOY if options.toy else FULL
        found = asyncio.run(measured(spec, works, options.repetitions))
    for work, speeds in found:
        table.add_row(*speeds.row(work))
    Console(width=110).print(table)
    results = [speeds.result(work) for work, speeds in found]
    write_results(options.to, "python -m benchmarks.efficiency", results)


def policy_spec(engine: str, folder: Path) -> ModelSpec:
    policy, _ = random_checkpoints(folder)
    prompt = PromptStyle(template=PROBLEM)
    return ModelSpec("policy", str(policy), engine, "float32", max_batch=BATCH, prompt=prompt)


async def measured(
    spec: ModelSpec, works: Sequence[Work], repetitions: int
) -> list[tuple[Work, Speeds]]:
    """Raw and search in turns; the first search of each work records and warms up."""
    engine, fake = load_policy_engine(spec), ModelSpec("prm", "fake", "fake", "float64")
    found = []
    try:
        with connected(None):
            async with deployed("prm", fake) as prms, deployed("policy", spec) as policies:
                prm, policy = await asyncio.gather(prms, policies)
                assert prm
                assert policy
                site = Site("p", "policy", "prm", 0, 0, UNIT_TIMEOUT_S, policy.keys, prm.keys)
                for work in works:
                    found.append((work, await _compared(work, engine, site, repetitions)))
                    print("; ".join(found[-1][1].row(work)), flush=True)
    finally:
        getattr(engine, "close", lambda: None)()
    return found


async def _compared(work: Work, engine: Any, site: Site, repetitions: int) -> Speeds:
    items, speeds = await _recorded(work, engine), Speeds()
    await _through_serve(work, site)
    for repetition in range(repetitions + 1):
        await _forget(engine)
        if repetition:
            speeds.search.append(await _through_serve(work, site))
            await _forget(engine)
        speeds.raw.append(await _raw(engine, items))
    return speeds


async def _recorded(work: Work, engine: Any) -> list[ExpandItem]:
    """The search's requests, parents before children."""
    policy = Recording(engine)
    async with asyncio.TaskGroup() as tasks:
        for unit in work.units():
            tasks.create_task(run_unit(unit, policy, SeededPRM()))
    return sorted(policy.items, key=lambda item: len(item.path.token_ids))


async def _forget(engine: Any) -> None:
    """Empties the caches of both engines."""
    from ray import serve

    if hasattr(engine, "forget"):
        await engine.forget()
    await serve.get_app_handle("policy").forget.remote()


async def _raw(engine: Any, items: Sequence[ExpandItem]) -> float:
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(engine.expand(item)) for item in items]
    seconds = time.perf_counter() - started
    return sum(_tokens(each.result()) for each in asked) / seconds


def _tokens(expansion: Expansion) -> int:
    return sum(count_ids(completion.token_ids) for completion in expansion.completions)


async def _through_serve(work: Work, site: Site) -> float:
    admission = admission_of(
        work.n * work.problems,
        replicas=len(site.policy_keys),
        max_batch=BATCH,
        solutions_per_unit=SOLUTIONS_PER_UNIT,
        speculation=False,
    )
    started, tokens = time.perf_counter(), 0
    async for done in run_units(work.units(), site, admission):
        if done.failed:
            raise RuntimeError(done.units["error"][0].as_py())
        tokens += done.units["generated_policy_tokens"][0].as_py()
    return tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
