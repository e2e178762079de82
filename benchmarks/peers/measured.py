"""What is measured: a task, what each contestant found, and the meters that counted its tokens.

Invariant: a meter counts and never changes what an engine answers or when.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from actors.chains import chain_reader, chains
from actors.engines import PolicyEngine, PRMEngine
from actors.wire import ExpandItem, ScoreItem
from search.config import SearchConfig
from search.errors import first_cause
from search.growth import Growth
from search.problem import Problem
from search.protocols import Expansion, PolicyPath, PRMPath, Sampling, Score
from search.token_ids import count_ids
from search.whole_solutions import SolutionRequest, WritesSolutions, step_by_step


@dataclass(slots=True)
class Meter:
    """Tokens one contestant spent on one task, and the paths whose last step it had scored."""

    policy_tokens: int = 0
    prm_tokens: int = 0
    scored: list[PRMPath] = field(default_factory=list)

    def count(self, path: PRMPath, score: Score) -> None:
        """A path whose last step was scored."""
        self.prm_tokens += score.tokens_computed
        self.scored.append(path)


@dataclass(frozen=True, slots=True)
class Task:
    """One search over all problems; `config` holds the strategy, N, limits, sampling and seed."""

    problems: tuple[Problem, ...]
    config: SearchConfig
    meter: Meter


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solution a contestant ended with: its text, and the score it was ranked by."""

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Found:
    """What one problem came to; a search that failed has no candidates and says why."""

    problem_id: str
    seconds: float
    candidates: tuple[Candidate, ...]
    error: str = ""


Search = Callable[[Problem], Awaitable[Sequence[Candidate]]]


async def side_by_side(problems: Sequence[Problem], search: Search) -> list[Found]:
    """All problems at once; a problem's seconds run from its own start to its answer."""
    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(timed(problem, search)) for problem in problems]
    return [each.result() for each in found]


async def timed(problem: Problem, search: Search) -> Found:
    """One problem; a failure is data, as a work unit's is."""
    started, candidates, error = time.perf_counter(), tuple[Candidate, ...](), ""
    try:
        candidates = tuple(await search(problem))
    except Exception as failure:
        cause = first_cause(failure)
        error = f"{type(cause).__name__}: {cause}"
    return Found(problem.problem_id, time.perf_counter() - started, candidates, error)


def candidates_of(growth: Growth, nodes: Sequence[int]) -> list[Candidate]:
    """Nodes of a tree as solutions, with the score by which the search ranks them."""
    return [Candidate(growth.tree.text(node), growth.score(node)) for node in nodes]


def steps_of(text: str, delimiter: str) -> tuple[str, ...]:
    """A whole solution cut into steps."""
    return tuple(step for step in text.split(delimiter) if step.strip())


@dataclass(frozen=True, slots=True)
class MeteredPolicy:
    """`search.protocols.Policy` over an engine in this process."""

    engine: PolicyEngine
    meter: Meter

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        found = await self.engine.expand(ExpandItem(path, n, sampling, max_tokens, seed, first))
        self.meter.policy_tokens += sum(count_ids(each.token_ids) for each in found.completions)
        return found

    async def write(self, request: SolutionRequest) -> list[Expansion]:
        """A solution in one piece, where the engine can write one."""
        if not isinstance(self.engine, WritesSolutions):
            return await step_by_step(self, request)
        steps = await self.engine.write(request)
        sampled = [count_ids(each.token_ids) for step in steps for each in step.completions]
        self.meter.policy_tokens += sum(sampled) + steps[-1].tokens_past_end
        return steps


@dataclass(frozen=True, slots=True)
class MeteredPRM:
    """`search.protocols.PRM` over a way to score one path in this process.

    `in_line`: paths of a call are scored one after the other, as a worker without batches does.
    """

    read: Callable[[ScoreItem], Awaitable[Score]]
    meter: Meter
    in_line: asyncio.Semaphore | None = None

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        if self.in_line is not None:
            async with self.in_line:
                return [await self._one(path) for path in paths]
        async with asyncio.TaskGroup() as tasks:
            scores = [tasks.create_task(self._one(path)) for path in paths]
        return [score.result() for score in scores]

    async def _one(self, path: PRMPath) -> Score:
        score = await self.read(ScoreItem(path))
        self.meter.count(path, score)
        return score


@dataclass(frozen=True, slots=True)
class MeteredReplica:
    """`search.protocols.PRM` over an engine in this process, asked as a replica asks it."""

    engine: PRMEngine
    meter: Meter

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        read, parts = chain_reader(self.engine), chains([ScoreItem(path) for path in paths])
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(read(part)) for part in parts]
        scores = [score for part in found for score in part.result()]
        for path, score in zip(paths, scores, strict=True):
            self.meter.count(path, score)
        return scores
