"""What `branchwise plan --gpus` prints: time, cost, the best split, and what it stands on.

Invariant: what is assumed is printed beside what follows from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from jobs.gpu_types import GPUType, gpu_type
from jobs.plan import PLAIN_WIDTH
from jobs.prediction import Job, Split, tasks_at_once
from jobs.routed_checks import check_plan
from jobs.settings import Recipe
from jobs.splits import RunPrediction, best_splits, half_of, jobs_of
from jobs.step_statistics import assumed_steps, measured_steps
from jobs.storage import Where, folder_to_read
from search.errors import RecipeError
from search.step_model import StepModel

# Twice the GPUs for less than 1 / (2 x this) of the time: they hardly pay.
PAYING = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked for: GPUs, and what replaces the assumptions."""

    gpus: int
    gpu: GPUType
    price_usd: float
    from_run: Where | None = None
    step_tokens: float | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """The answer: splits from quickest to slowest, and the quickest with half the GPUs."""

    question: Question
    jobs: list[Job]
    runs: list[RunPrediction]
    half: RunPrediction | None

    @property
    def best(self) -> RunPrediction:
        return self.runs[0]

    @property
    def efficiency(self) -> float | None:
        """What the second half of the GPUs gives of what the first half gave."""
        if self.half is None:
            return None
        return self.half.makespan_s / (2 * self.best.makespan_s)


def question(
    gpus: int,
    gpu: str | None,
    price_usd: float | None = None,
    from_run: Where | None = None,
    step_tokens: float | None = None,
    steps: int | None = None,
) -> Question:
    """Checks what the command line gave; raises RecipeError."""
    if gpu is None:
        raise RecipeError("--gpus needs --gpu-type, such as --gpu-type h100")
    known = gpu_type(gpu)
    price = known.usd_per_hour if price_usd is None else price_usd
    for option, value in (("--gpus", gpus), ("--step-tokens", step_tokens), ("--steps", steps)):
        if value is not None and value < 1:
            raise RecipeError(f"{option} must be at least 1, not {value:g}")
    if price < 0:
        raise RecipeError(f"--gpu-price must be 0 or more, not {price:g}")
    return Question(
        gpus=gpus,
        gpu=known,
        price_usd=price,
        from_run=from_run,
        step_tokens=step_tokens,
        steps=steps,
    )


def forecast(recipe: Recipe, asked: Question) -> Forecast:
    """Simulates the recipe on the splits worth trying; raises RecipeError as `plan_run` does."""
    check_plan(recipe)
    models = [_steps(recipe, asked, policy.name or policy.model) for policy in recipe.policies]
    jobs = jobs_of(recipe, asked.gpu, models)
    own = Split(recipe.policies[0].replicas, recipe.prm.replicas if recipe.prm else 0)
    runs = best_splits(jobs, asked.gpus, own)
    return Forecast(asked, jobs, runs, half_of(jobs, runs[0].split))


def _steps(recipe: Recipe, asked: Question, policy: str) -> StepModel:
    if asked.from_run is None:
        return assumed_steps(recipe, asked.step_tokens, asked.steps)
    if asked.step_tokens or asked.steps:
        raise RecipeError("--from-run measures steps: leave out --step-tokens and --steps")
    return measured_steps(asked.from_run, policy)


# What is printed


def print_forecast(found: Forecast, console: Console) -> None:
    """The best split in full, all of them as a table, and what is assumed."""
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    table = Table(box=None, show_header=False)
    for label, value in _rows(found):
        table.add_row(label, value)
    console.print(table)
    console.print(_splits_table(found, console.is_terminal))
    for note in _notes(found):
        console.print(f"note: {note}", soft_wrap=True, highlight=False)


def _rows(found: Forecast) -> Iterator[tuple[str, str]]:
    best, asked = found.best, found.question
    longest, price = best.longest, asked.price_usd
    yield "predicted for", f"{asked.gpus} GPUs of type {asked.gpu.name}"
    yield "best split", _replicas(best.split)
    yield "time", readable_s(best.makespan_s)
    hours = asked.gpus * best.makespan_s / 3600
    cost = best.cost_usd(asked.gpus, price)
    yield "cost", f"${cost:,.2f} ({hours:,.2f} GPU hours at ${price:.2f})"
    yield "policy", f"busy {longest.policy_busy:.0%}, batches filled {longest.policy_filled:.0%}"
    yield "PRM", f"busy {longest.prm_busy:.0%}" if best.split.prms else "none"
    yield "bottleneck", longest.bottleneck
    yield "policy tokens", f"{sum(job.policy_tokens for job in best.jobs):,.0f}"
    tasks = max(tasks_at_once(job, best.split.policies) for job in found.jobs)
    yield "tasks at once", f"{tasks:,} (each wants a quarter of a CPU core)"


def _splits_table(found: Forecast, lines: bool) -> Table:
    heads = ("policy + PRM replicas", "time", "cost", "policy filled", "PRM busy", "bottleneck")
    table = Table(*heads) if lines else Table(*heads, box=None)
    for run in found.runs:
        cost = run.cost_usd(found.question.gpus, found.question.price_usd)
        time, longest = readable_s(run.makespan_s), run.longest
        shares = f"{longest.policy_filled:.0%}", f"{longest.prm_busy:.0%}"
        row = (_replicas(run.split), time, f"${cost:,.2f}", *shares, longest.bottleneck)
        table.add_row(*row)
    return table


def _replicas(split: Split) -> str:
    return f"{split.policies} + {split.prms}" if split.prms else f"{split.policies}"


def readable_s(seconds: float) -> str:
    """Seconds as a reader would say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _notes(found: Forecast) -> Iterator[str]:
    asked, efficiency = found.question, found.efficiency
    yield f"simulated: {found.best.longest.simulated}; start-up, loading and grading are not in it"
    yield from (_steps_note(job, asked) for job in found.jobs)
    yield f"speed of {asked.gpu.name}: {_speed_note(found.jobs)}"
    if efficiency is not None and efficiency < PAYING:
        half = found.half.makespan_s if found.half else 0.0
        yield (
            f"half the GPUs would take {readable_s(half)}: the second half adds "
            f"{max(0.0, 2 * efficiency - 1):.0%} of what the first half does"
        )


def _steps_note(job: Job, asked: Question) -> str:
    steps, source = job.steps, "assumed: --step-tokens, --steps or --from-run replace it"
    if asked.from_run is not None:
        source = f"measured in {folder_to_read(asked.from_run)}"
    return (
        f"{job.name} writes {steps.steps:.1f} steps of {steps.step_tokens:.0f} tokens (coefficient "
        f"of variation {steps.step_cv:.2f}) and reads {steps.prompt_tokens} a unit ({source})"
    )


def _speed_note(jobs: Sequence[Job]) -> str:
    speeds = [f"{job.name} {_tokens_per_s(job):,.0f} tokens/s a replica" for job in jobs]
    prm = next((job.prm for job in jobs if job.prm), None)
    if prm and prm.prompt_token_s:
        speeds.append(f"PRM {1 / prm.prompt_token_s:,.0f} tokens/s")
    return ", ".join(speeds) + " at most, by data sheet and roofline unless timing is given"


def _tokens_per_s(job: Job) -> float:
    policy = job.policy
    return policy.max_batch / (policy.iteration_s + policy.max_batch * policy.sequence_s)
