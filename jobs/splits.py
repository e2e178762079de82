"""How to divide GPUs between the policy and the PRM: predictions for several splits, best first.

Splits are tried around the one that gives each role its share of the work. Invariant: every
split that is shown was simulated and needs no more GPUs than there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.fit import check_fit, model_fits
from jobs.gpu_types import GPUType
from jobs.plan import plan_run
from jobs.prediction import Job, Prediction, Split, predict
from jobs.settings import ModelSettings, Recipe
from jobs.timing import engine_timing
from search.errors import RecipeError
from search.simulated import EngineTiming
from search.step_model import StepModel
from search.strategies import STRATEGIES

# Of the PRM's share of GPUs that balances its work with the policy's.
TRIED = (0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class RunPrediction:
    """A whole run on one split: its policies run one after the other."""

    split: Split
    jobs: tuple[Prediction, ...]

    @property
    def makespan_s(self) -> float:
        return sum(job.makespan_s for job in self.jobs)

    @property
    def gpus(self) -> float:
        return max(job.gpus for job in self.jobs)

    @property
    def longest(self) -> Prediction:
        """The part that takes most of the time."""
        return max(self.jobs, key=lambda job: job.makespan_s)

    def cost_usd(self, gpus: int, gpu_price: float) -> float:
        """Of all GPUs that are held, whether the split uses each of them or not."""
        return gpus * self.makespan_s / 3600 * gpu_price


def jobs_of(recipe: Recipe, gpu: GPUType, steps: Sequence[StepModel]) -> list[Job]:
    """One job for each policy, with its steps; refuses what cannot be predicted."""
    recipe = with_memory(recipe, gpu)
    check_fit(recipe)
    problems = plan_run(recipe).problems
    if problems is None:
        raise RecipeError("the number of problems is not known: set data.N.size")
    fits = model_fits(recipe)
    context = [_context_tokens(model) for model in steps]
    prm = engine_timing(fits[-1], gpu, max(context)) if recipe.prm else None
    return [
        _job(recipe, place, model, engine_timing(fits[place], gpu, context[place]), prm, problems)
        for place, model in enumerate(steps)
    ]


def with_memory(recipe: Recipe, gpu: GPUType) -> Recipe:
    """The recipe for GPUs of this type, unless it says itself what memory they have."""
    memory = recipe.cluster.gpu_memory_gib or gpu.memory_gib
    cluster = recipe.cluster.model_copy(update={"gpu_memory_gib": memory})
    return recipe.model_copy(update={"cluster": cluster})


def _context_tokens(steps: StepModel) -> float:
    """Of a sequence at work, on average: its prompt and half of its solution."""
    return steps.prompt_tokens + steps.step_tokens * steps.steps / 2


def _job(
    recipe: Recipe,
    place: int,
    steps: StepModel,
    timing: EngineTiming,
    prm: EngineTiming | None,
    problems: int,
) -> Job:
    policy = recipe.policies[place]
    configs = recipe.search_configs(policy.name)
    scored = any(STRATEGIES[config.strategy].uses_prm for config in configs)
    return Job(
        name=policy.name or policy.model,
        configs=configs,
        problems=problems,
        solutions_per_unit=recipe.work.solutions_per_unit,
        steps=steps,
        policy=timing,
        policy_batch=policy.max_batch,
        prm=prm if scored else None,
        policy_gpus=gpus_of(policy),
        prm_gpus=gpus_of(recipe.prm) if recipe.prm else 0.0,
        units_in_flight=recipe.work.units_in_flight,
    )


def gpus_of(model: ModelSettings) -> float:
    """Of one replica; without GPUs it counts as one, so that a measured speed can be planned."""
    return model.gpus_per_replica or 1.0


def predict_run(jobs: Sequence[Job], split: Split) -> RunPrediction:
    """Every policy in turn on the same split."""
    return RunPrediction(split, tuple(predict(job, split) for job in jobs))


def best_splits(jobs: Sequence[Job], gpus: int, own: Split) -> list[RunPrediction]:
    """Predictions for the splits worth trying, quickest first. `own`: the recipe's."""
    splits = dict.fromkeys(_splits(jobs, gpus, own))
    return sorted((predict_run(jobs, split) for split in splits), key=lambda run: run.makespan_s)


def half_of(jobs: Sequence[Job], best: Split) -> RunPrediction | None:
    """The best split with half the replicas; None if there is no half."""
    if best.policies < 2 or best.prms == 1:
        return None
    return predict_run(jobs, Split(best.policies // 2, best.prms // 2))


def _splits(jobs: Sequence[Job], gpus: int, own: Split) -> Iterator[Split]:
    share = max(map(_prm_share, jobs))
    for times in TRIED:
        yield _split(jobs, gpus, min(0.9, times * share))
    yield _split(jobs, gpus, _own_share(jobs[0], own))


def _own_share(job: Job, own: Split) -> float:
    return own.prms * job.prm_gpus / own.gpus(job)


def _prm_share(job: Job) -> float:
    """Of the GPUs, so that both roles end together if their batches are full."""
    if job.prm is None:
        return 0.0
    steps, prm = job.steps, job.prm
    policy_s = steps.step_tokens * (job.policy.iteration_s / job.policy.max_batch)
    policy_s += steps.step_tokens * job.policy.sequence_s
    prm_s = steps.step_tokens * steps.prm_tokens_per_token * prm.prompt_token_s
    prm_s += prm.iteration_s / prm.max_batch + prm.sequence_s
    gpus = policy_s * job.policy_gpus + prm_s * job.prm_gpus
    return prm_s * job.prm_gpus / gpus


def _split(jobs: Sequence[Job], gpus: int, prm_share: float) -> Split:
    """Whole replicas with about that share for the PRM; raises RecipeError if they do not fit."""
    policy_gpus, prm_gpus = max(job.policy_gpus for job in jobs), max(j.prm_gpus for j in jobs)
    if not prm_gpus:
        return Split(_at_least_one(gpus, policy_gpus, policy_gpus), 0)
    most = gpus - policy_gpus
    prms = min(max(1, round(gpus * prm_share / prm_gpus)), int(most / prm_gpus))
    if prms < 1:
        raise RecipeError(
            f"--gpus {gpus} is too few: a replica of the policy and one of the PRM need "
            f"{policy_gpus + prm_gpus:g}"
        )
    return Split(int((gpus - prms * prm_gpus) / policy_gpus), prms)


def _at_least_one(gpus: int, each: float, needed: float) -> int:
    if gpus < needed:
        raise RecipeError(f"--gpus {gpus} is too few: a replica of the policy needs {needed:g}")
    return int(gpus / each)
