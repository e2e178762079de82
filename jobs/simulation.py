"""A run's searches on simulated replicas in virtual time: the real search code, no model.

Invariant: what decides a real run's time decides this one: work units as `search.partition` cuts
them, admission by solutions in flight, each unit on one replica of each role, and a fixed
overhead for every call. No two simulations of the same arguments differ.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from actors.spread import spread_policy, spread_prm
from cluster.admission import Admission, Bundle
from cluster.backlog import bundles
from cluster.routing import Balance
from search.partition import WorkUnit, run_unit
from search.protocols import PRM, Expansion, Policy, PolicyPath, PRMPath, Sampling, Score
from search.simulated import EngineTiming, SimulatedEngine, SimulatedPolicy, SimulatedPRM
from search.step_model import ModelledPolicy, ModelledPRM, StepModel
from search.virtual_time import run_virtually
from search.whole_solutions import SolutionRequest, step_by_step

# About one call through Serve; over lines it is less, so this is cautious (docs/planning.md).
CALL_S = 0.003

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The replicas of a simulation, and how much may be under way at once."""

    policy: EngineTiming
    policies: int
    admission: Admission
    prm: EngineTiming = field(default_factory=EngineTiming)
    prms: int = 1
    call_s: float = CALL_S


@dataclass(slots=True)
class Waited:
    """Seconds that calls took, summed over all of them: where the time of a path goes."""

    policy_s: float = 0.0
    prm_s: float = 0.0
    transport_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Use:
    """What replicas had done at some moment; `busy_s` and tokens are sums over them."""

    at_s: float = 0.0
    policy_busy_s: float = 0.0
    prm_busy_s: float = 0.0
    policy_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Simulated:
    """A simulated run: its end, and how things stood when the last unit was admitted."""

    end: Use
    all_admitted: Use
    waited: Waited
    units: int
    solutions: int
    generations: int
    prm_tokens: int

    @property
    def makespan_s(self) -> float:
        return self.end.at_s


def simulate(units: Iterable[WorkUnit], fleet: Fleet, model: StepModel) -> Simulated:
    """Runs the units to their end."""
    return run_virtually(_Run(fleet, model).run(units))[0]


class _Role:
    """The replicas of one role, by affinity key as on a cluster."""

    def __init__(self, timing: EngineTiming, replicas: int, batch: int) -> None:
        self.engines = {str(place): SimulatedEngine(timing) for place in range(replicas)}
        self.balance = Balance(tuple(self.engines), batch)

    @property
    def busy_s(self) -> float:
        return sum(engine.busy_s for engine in self.engines.values())


class _Run:
    """One simulation under way."""

    def __init__(self, fleet: Fleet, model: StepModel) -> None:
        self._fleet, self._model = fleet, model
        self._policy = _Role(fleet.policy, fleet.policies, fleet.admission.batch)
        self._prm = _Role(fleet.prm, fleet.prms, fleet.admission.batch)
        self._running: list[Bundle] = []
        self._room = asyncio.Event()
        self._waited = Waited()
        self._counts = {"units": 0, "solutions": 0, "generations": 0, "prm_tokens": 0}

    async def run(self, units: Iterable[WorkUnit]) -> Simulated:
        async with asyncio.TaskGroup() as tasks:
            for bundle in bundles(units, self._fleet.admission.per_task):
                await self._admitted(bundle)
                tasks.create_task(self._run_bundle(self._started(bundle)))
            all_admitted = self._use()
        return Simulated(self._use(), all_admitted, self._waited, **self._counts)

    async def _admitted(self, bundle: Bundle) -> None:
        """Waits until the driver would start it."""
        while not self._fleet.admission.admits(self._running, bundle):
            self._room.clear()
            await self._room.wait()

    def _started(self, bundle: Bundle) -> Bundle:
        bundle = self._fleet.admission.started(self._running, bundle)
        self._running.append(bundle)
        return bundle

    async def _run_bundle(self, bundle: Bundle) -> None:
        solutions = bundle.solutions
        policies = self._policy.balance.take(solutions)
        prms = self._prm.balance.take(solutions)
        policy, prm = self._policies(policies), self._prms(prms)
        async with asyncio.TaskGroup() as tasks:
            for unit in bundle.units:
                tasks.create_task(self._search(unit, policy, prm, bundle.slots_of(unit)))
        self._policy.balance.give_back(policies, solutions)
        self._prm.balance.give_back(prms, solutions)
        self._running.remove(bundle)
        self._room.set()

    async def _search(self, unit: WorkUnit, policy: Policy, prm: PRM, slots: int) -> None:
        growth = await run_unit(unit, policy, prm, slots)
        self._count(units=1, solutions=unit.solutions, generations=growth.budget.generations)
        self._count(prm_tokens=growth.budget.prm_tokens_computed)

    def _policies(self, keys: Sequence[str]) -> Policy:
        engines = [self._policy.engines[key] for key in keys]
        call_s, waited = self._fleet.call_s, self._waited
        return spread_policy([_Called(each, self._model, call_s, waited) for each in engines])

    def _prms(self, keys: Sequence[str]) -> PRM:
        engines = [self._prm.engines[key] for key in keys]
        call_s, waited = self._fleet.call_s, self._waited
        return spread_prm([_CalledPRM(each, self._model, call_s, waited) for each in engines])

    def _count(self, **more: int) -> None:
        for name, count in more.items():
            self._counts[name] += count

    def _use(self) -> Use:
        tokens = sum(engine.tokens for engine in self._policy.engines.values())
        now_s = asyncio.get_running_loop().time()
        return Use(now_s, self._policy.busy_s, self._prm.busy_s, tokens)


async def _timed(work: Awaitable[Result]) -> tuple[Result, float]:
    clock = asyncio.get_running_loop().time
    started_s = clock()
    return await work, clock() - started_s


class _Called:
    """A work unit's policy: one replica, and what it takes to reach it."""

    def __init__(
        self, engine: SimulatedEngine, model: StepModel, call_s: float, waited: Waited
    ) -> None:
        self._policy = SimulatedPolicy(ModelledPolicy(model), engine)
        self._call_s, self._waited = call_s, waited

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
        expand = partial(self._policy.expand, path, n, sampling, max_tokens, seed, first)
        return await self._called(expand)

    async def write(self, request: SolutionRequest) -> list[Expansion]:
        """See `search.whole_solutions.WritesSolutions`."""
        return await self._called(partial(step_by_step, self._policy, request))

    async def _called(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """The work begins when the call has arrived; one that is given up before never does."""
        await asyncio.sleep(self._call_s)
        result, seconds = await _timed(work())
        self._waited.transport_s += self._call_s
        self._waited.policy_s += seconds
        return result


class _CalledPRM:
    """A work unit's PRM: one replica, and what it takes to reach it."""

    def __init__(
        self, engine: SimulatedEngine, model: StepModel, call_s: float, waited: Waited
    ) -> None:
        self._prm = SimulatedPRM(ModelledPRM(model), engine)
        self._call_s, self._waited = call_s, waited

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        """See `search.protocols.PRM`."""
        await asyncio.sleep(self._call_s)
        scores, seconds = await _timed(self._prm.score(paths))
        self._waited.transport_s += self._call_s
        self._waited.prm_s += seconds
        return scores
