"""How long a run would take on so many replicas, what it would cost, and what holds it back.

A run is too large to simulate whole, so a sample is: the same ratio of replicas, fewer of them,
with their share of the work; and of more work than fills them a few times, only so much, the rest
being added at the rate of the steady state. Invariant: a prediction says how much of the run was
simulated; what is not in it (start-up, loading, grading) is listed in docs/planning.md.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.admission import ROOM, Admission, admission_of
from cluster.backlog import bundles
from jobs.simulation import CALL_S, Fleet, Simulated, Waited, simulate
from search.config import SearchConfig
from search.partition import WorkUnit, partition
from search.problem import Problem
from search.simulated import EngineTiming
from search.step_model import StepModel

# A sample brings this many times what is under way at once, and about this many steps.
WAVES = 3
SAMPLED_STEPS = 24_000
MOST_REPLICAS = 8
# What one work unit costs the driver: taking its tables in (0.7 ms here for 32 solutions of ten
# steps) and Ray's part. Assumed.
DRIVER_UNIT_S = 0.003
# Of the policy's places in batches: full, or at least mostly written in.
FULL, HALF = 0.85, 0.5
# Of the time: a PRM that hardly ever waits.
ALWAYS_BUSY = 0.8

POLICY, PRM, TRANSPORT, DRIVER, TAIL = (
    "policy",
    "PRM",
    "calls to replicas",
    "driver",
    "too few work units",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One policy's searches over all problems, and what its and the PRM's replicas take.

    GPUs are of one replica; `policy_batch` is what admission counts with, `prm` is None if no
    search needs one.
    """

    name: str
    configs: Sequence[SearchConfig]
    problems: int
    solutions_per_unit: int
    steps: StepModel
    policy: EngineTiming
    policy_batch: int
    prm: EngineTiming | None = None
    policy_gpus: float = 1.0
    prm_gpus: float = 0.0
    units_in_flight: int | None = None
    call_s: float = CALL_S

    @property
    def solutions_of_a_problem(self) -> int:
        return sum(config.n for config in self.configs)

    @property
    def units_of_a_problem(self) -> int:
        return sum(1 for _ in self._units("p"))

    @property
    def solutions(self) -> int:
        return self.problems * self.solutions_of_a_problem

    def units(self) -> Iterator[WorkUnit]:
        """Problem after problem, without end."""
        for place in itertools.count():
            yield from self._units(f"p{place}")

    def _units(self, problem_id: str) -> Iterator[WorkUnit]:
        for config in self.configs:
            yield from partition(Problem(problem_id, "", ""), config, self.solutions_per_unit)


@dataclass(frozen=True, slots=True)
class Split:
    """Replicas of the policy and of the PRM; no PRM, no replicas of it."""

    policies: int
    prms: int

    def gpus(self, job: Job) -> float:
        return self.policies * job.policy_gpus + self.prms * job.prm_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One policy's part of a run, on one split. Shares are of the makespan, from 0 to 1.

    `policy_filled`: of the places in the policy's batches, those that wrote.
    """

    split: Split
    gpus: float
    makespan_s: float
    policy_busy: float
    policy_filled: float
    prm_busy: float
    bottleneck: str
    policy_tokens: float
    simulated: str

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.makespan_s / 3600

    def cost_usd(self, gpu_price: float) -> float:
        """gpu_price: of one GPU for one hour."""
        return self.gpu_hours * gpu_price


@dataclass(frozen=True, slots=True)
class Sample:
    """What is simulated of a job on a split: `share` of its replicas, and `solutions` of theirs.

    `stretch`: the PRM's replicas are whole, so there may be too many; their times are longer.
    """

    policies: int
    prms: int
    stretch: float
    share: float
    solutions: int
    all_solutions: float


def predict(job: Job, split: Split) -> Prediction:
    """Simulates a sample and scales it up."""
    sample = sampled(job, split)
    return _scaled(job, split, sample, _simulate(job, sample))


def sampled(job: Job, split: Split) -> Sample:
    """As many replicas as `SAMPLED_STEPS` allow, in a ratio that is nearly that of the split."""
    most = max(1, min(MOST_REPLICAS, int(SAMPLED_STEPS / _steps_of_a_replica(job, split))))
    policies = min(most, split.policies)
    if split.policies > most and split.prms:
        policies = min(range(most, 0, -1), key=lambda count: _prms(split, count)[1])
    share = policies / split.policies
    prms, stretch = _prms(split, policies)
    of_sample = job.solutions * share
    few = WAVES * _in_flight(job, policies)
    return Sample(policies, prms, stretch, share, max(1, round(min(of_sample, few))), of_sample)


def _steps_of_a_replica(job: Job, split: Split) -> float:
    solutions = min(job.solutions / split.policies, WAVES * _in_flight(job, 1))
    return max(1.0, solutions * job.steps.steps)


def _in_flight(job: Job, policies: int) -> int:
    return ROOM * policies * job.policy_batch


def _prms(split: Split, policies: int) -> tuple[int, float]:
    """PRM replicas beside so many of the policy, and by how much that is too many."""
    exact = split.prms * policies / split.policies
    whole = max(1, math.ceil(exact - 1e-9))
    return whole, whole / exact if exact else 1.0


def _simulate(job: Job, sample: Sample) -> Simulated:
    prm = job.prm or EngineTiming()
    slower = replace(
        prm,
        iteration_s=prm.iteration_s * sample.stretch,
        sequence_s=prm.sequence_s * sample.stretch,
        prompt_token_s=prm.prompt_token_s * sample.stretch,
    )
    fleet = Fleet(
        policy=job.policy,
        policies=sample.policies,
        admission=_admission(job, sample),
        prm=slower,
        prms=sample.prms,
        call_s=job.call_s,
    )
    return simulate(_some_units(job, sample.solutions), fleet, job.steps)


def _admission(job: Job, sample: Sample) -> Admission:
    """The driver's, for a sample of its replicas; what the last units write ahead is left out."""
    tasks = job.units_in_flight and max(1, round(job.units_in_flight * sample.share))
    return admission_of(
        round(sample.all_solutions),
        replicas=sample.policies,
        max_batch=job.policy_batch,
        solutions_per_unit=job.solutions_per_unit,
        tasks=tasks,
        speculation=False,
    )


def tasks_at_once(job: Job, policies: int) -> int:
    """Ray tasks that run side by side on so many replicas of the policy, once all may be under way:
    those that are admitted one after the other, in their order."""
    admission = admission_of(
        job.solutions,
        replicas=policies,
        max_batch=job.policy_batch,
        solutions_per_unit=job.solutions_per_unit,
        tasks=job.units_in_flight,
    )
    units = itertools.islice(job.units(), job.problems * job.units_of_a_problem)
    tasks = solutions = 0
    for bundle in bundles(units, admission.per_task):
        if not admission.has_room(tasks, solutions, bundle):
            break
        tasks, solutions = tasks + 1, solutions + bundle.solutions
    return tasks


def _some_units(job: Job, solutions: int) -> Iterator[WorkUnit]:
    left = solutions
    for unit in job.units():
        if left <= 0:
            return
        left -= unit.solutions
        yield unit


def _scaled(job: Job, split: Split, sample: Sample, done: Simulated) -> Prediction:
    """The whole from its sample, at the rate of the time in which there was more to admit."""
    end, steady = done.end, done.all_admitted
    times = sample.all_solutions / done.solutions  # less than 1 for a part of the last unit
    more = max(0.0, times - 1) * end.policy_tokens / max(1, steady.policy_tokens)
    search_s = end.at_s + more * steady.at_s
    driver_s = DRIVER_UNIT_S * job.problems * job.units_of_a_problem
    makespan_s = max(search_s, driver_s)

    def share(at_end: float, at_admission: float, replicas: int) -> float:
        used_s = min(1.0, times) * at_end + more * at_admission
        return min(1.0, used_s / (makespan_s * replicas))

    busy = share(end.policy_busy_s, steady.policy_busy_s, sample.policies)
    prm_busy = share(end.prm_busy_s, steady.prm_busy_s, sample.prms) if job.prm else 0.0
    written_s = times * end.policy_tokens * _full_token_s(job.policy)
    filled = written_s / (makespan_s * sample.policies)
    bottleneck = DRIVER if driver_s > search_s else _bottleneck(done.waited, filled, prm_busy)
    return Prediction(
        split=split,
        gpus=split.gpus(job),
        makespan_s=makespan_s,
        policy_busy=busy,
        policy_filled=filled,
        prm_busy=prm_busy,
        bottleneck=bottleneck,
        policy_tokens=times * end.policy_tokens / sample.share,
        simulated=_described(sample, done),
    )


def _full_token_s(timing: EngineTiming) -> float:
    """Seconds a token of a full batch."""
    return timing.iteration_s / timing.max_batch + timing.sequence_s


def _bottleneck(waited: Waited, filled: float, prm_busy: float) -> str:
    """The policy while its batches are full; else the PRM, if paths pile up there; else neither."""
    if filled >= FULL or (filled >= HALF and prm_busy < ALWAYS_BUSY):
        return POLICY
    if prm_busy >= ALWAYS_BUSY:
        return PRM
    whole_s = waited.policy_s + waited.prm_s + waited.transport_s
    return TRANSPORT if waited.transport_s > HALF * whole_s else TAIL


def _described(sample: Sample, done: Simulated) -> str:
    of_work = min(1.0, done.solutions / sample.all_solutions)
    stretched = f", PRM times x {sample.stretch:.2f}" if sample.stretch > 1.005 else ""
    replicas = f"{sample.policies} + {sample.prms} replicas{stretched}"
    return f"{replicas}, {done.solutions:,} solutions ({of_work:.0%} of theirs)"
