"""What a run will need and cost at most, told before anything starts.

Invariant: answers at once from the recipe, small files and tables; starts no Ray and loads no
model library. Numbers that are not known are "unknown", never guessed; what is assumed is said.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from jobs.data import DataSource, SourceKind, find_path, source_kind
from jobs.fit import (
    ASSUMED_GPU_MEMORY_GIB,
    ModelFit,
    gpu_memory_gib,
    model_fits,
    readable,
)
from jobs.routed_checks import check_plan
from jobs.settings import ModelSettings, Recipe
from search.config import Compat, SearchConfig
from search.partition import partition
from search.problem import Problem
from search.strategies.compute_optimal_tts import RETRIES

UNKNOWN = "unknown"
# One core is left for work units, as cluster/capacity.py asks for.
CORES_FOR_UNITS = 1
KNOWN_DATA_SETS = {"HuggingFaceH4/MATH-500": 500, "HuggingFaceH4/aime_2024": 30}
PLAIN_WIDTH = 200
# A system prompt and a problem seldom need less.
NARROW_PROMPT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The whole run in numbers. `problems` is None if that takes a download to know.

    `searches`, `units`, `level_tokens` and `most_tokens` are of one problem with all policies:
    searches; work units; policy tokens if discarded steps are as long as kept ones; and the bound
    that holds anyway.
    """

    recipe: Recipe
    problems: int | None
    searches: int
    units: int
    level_tokens: int
    most_tokens: int
    gpus: float
    cores: float
    fits: list[ModelFit]


def plan_run(recipe: Recipe) -> RunPlan:
    """Plans a resolved recipe; raises RecipeError for what is decided while a run goes on."""
    check_plan(recipe)
    configs = [c for policy in recipe.policies for c in recipe.search_configs(policy.name)]
    spu = recipe.work.solutions_per_unit
    anything = Problem("p", "", "")
    models = list(recipe.policies), [recipe.prm] if recipe.prm else []
    return RunPlan(
        recipe=recipe,
        problems=_total([_problem_count(source) for source in recipe.data]),
        searches=len(configs),
        units=sum(1 for config in configs for _ in partition(anything, config, spu)),
        level_tokens=sum(map(level_tokens, configs)),
        most_tokens=sum(map(most_tokens, configs)),
        gpus=max(m.most_gpus for m in models[0]) + sum(m.most_gpus for m in models[1]),
        cores=max(m.most_cores for m in models[0])
        + sum(m.most_cores for m in models[1])
        + CORES_FOR_UNITS,
        fits=model_fits(recipe),
    )


def most_tokens(config: SearchConfig) -> int:
    """Policy tokens of one search over one problem, at most.

    Each of the N/M kept paths grows to a whole solution, and at every step loses M - 1
    candidates, which may be far longer than the step that was kept; `rebase` may keep one of N.
    Before each candidate is scored `lookahead` steps more are written. What is empty or cut off
    `compute_optimal_tts` asks for again.
    """
    limits, whole = config.limits, _solution_tokens(config)
    step, steps = min(limits.max_step_tokens, whole), min(limits.max_steps, whole)
    branching = config.n if config.strategy == "rebase" else config.branching
    discarded = (branching - 1) * steps * step
    ahead = branching * steps * min(whole, config.lookahead * step)
    again = 1 + RETRIES if config.compat is Compat.COMPUTE_OPTIMAL_TTS else 1
    return config.n // branching * again * (whole + discarded + ahead)


def level_tokens(config: SearchConfig) -> int:
    """Policy tokens if every step is as long as those of the longest solution are on average."""
    ahead = config.lookahead / config.score_every
    return round(config.n * _solution_tokens(config) * (1 + ahead))


def _solution_tokens(config: SearchConfig) -> int:
    limits = config.limits
    return min(limits.max_solution_tokens, limits.max_steps * limits.max_step_tokens)


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _problem_count(source: DataSource) -> int | None:
    rows = _row_count(source)
    counts = [count for count in (rows, source.size) if count is not None]
    return min(counts, default=None)


def _row_count(source: DataSource) -> int | None:
    kind, path = source_kind(source.source), find_path(source.source)
    if kind is SourceKind.HUB:
        return KNOWN_DATA_SETS.get(source.source)
    if path is None or kind is SourceKind.REASONING_GYM:
        return None
    if kind is SourceKind.JSONL:
        with path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


# What is printed


def print_plan(plan: RunPlan, console: Console) -> None:
    """The models as a table, then the run; without lines and colours if not on a terminal."""
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    for table in (_models_table(plan, console.is_terminal), _run_table(plan)):
        console.print(table)
    for note in _notes(plan):
        console.print(f"note: {note}", soft_wrap=True, highlight=False)


def _models_table(plan: RunPlan, lines: bool) -> Table:
    heads = [_head(fit) for fit in plan.fits]
    table = Table("model", *heads) if lines else Table("model", *heads, box=None)
    columns = [dict(_model_rows(fit)) for fit in plan.fits]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    return table


def _head(fit: ModelFit) -> str:
    return "PRM" if fit.where == "prm" else str(getattr(fit.settings, "name", fit.where))


def _model_rows(fit: ModelFit) -> Iterator[tuple[str, str]]:
    model = fit.settings
    per = "GPU" if model.gpus_per_replica else "replica"
    yield "engine", model.engine
    yield "replicas", _replicas(model)
    yield "GPUs of a replica / in all", f"{model.gpus_per_replica:g} / {model.most_gpus:g}"
    yield "dtype", " ".join(filter(None, [model.dtype, fit.quantization]))
    yield "parameters", f"{fit.shape.parameters:,}" if fit.shape else _missing(fit)
    yield "weights", _size(fit, fit.weight_bytes, per)
    yield "left for KV cache", _size(fit, fit.kv_room_bytes, per)
    yield "KV cache of a token", _token_size(fit)
    yield "sequences at once", _sequences(fit)


def _replicas(model: ModelSettings) -> str:
    scaling = model.autoscaling
    return f"{scaling.min} to {scaling.max}" if scaling else str(model.replicas)


def _missing(fit: ModelFit) -> str:
    return "-" if fit.settings.engine == "fake" else UNKNOWN


def _size(fit: ModelFit, size: float | None, per: str) -> str:
    return _missing(fit) if size is None else f"{readable(size)} a {per}"


def _token_size(fit: ModelFit) -> str:
    return f"{fit.kv_token_bytes / 1024:g} KiB" if fit.kv_token_bytes else _missing(fit)


def _sequences(fit: ModelFit) -> str:
    """Of full length in one replica, and what bounds them."""
    if fit.sequences is None:
        return _missing(fit)
    full = fit.sequences == fit.settings.max_batch
    return f"{fit.sequences} of {fit.sequence_tokens} tokens" + (" (max_batch)" if full else "")


def _run_table(plan: RunPlan) -> Table:
    table = Table(box=None, show_header=False)
    for label, value in _run_rows(plan):
        table.add_row(label, value)
    return table


def _run_rows(plan: RunPlan) -> Iterator[tuple[str, str]]:
    recipe = plan.recipe
    problems = UNKNOWN if plan.problems is None else f"{plan.problems:,}"
    yield "problems", problems
    yield "searches of a problem", f"{plan.searches} (policies: {len(recipe.policies)})"
    yield "work units", _of_all(plan, plan.units)
    yield "GPUs at once", f"{plan.gpus:g} (largest policy and PRM)"
    yield "CPU cores at once", f"{plan.cores:g} (with one for work units)"
    yield "a machine must offer", _machine(recipe)
    level, most = _of_all(plan, plan.level_tokens), _of_all(plan, plan.most_tokens)
    yield "policy tokens", f"{level} if discarded steps are as long as kept ones"
    yield "policy tokens, at most", most


def _of_all(plan: RunPlan, each: int) -> str:
    """A number of one problem as that of the run."""
    return f"{each:,} a problem" if plan.problems is None else f"{each * plan.problems:,}"


def _machine(recipe: Recipe) -> str:
    models = [*recipe.policies, *([recipe.prm] if recipe.prm else [])]
    gpus = max(model.gpus_per_replica for model in models)
    cores = max(model.cpus_per_replica for model in models)
    whole = f"{-(-gpus // 1):g} GPU of {gpu_memory_gib(recipe):g} GiB" if gpus else "no GPU"
    return f"{whole}, {cores:g} CPU cores"


def _notes(plan: RunPlan) -> Iterator[str]:
    on_gpu = any(fit.settings.gpus_per_replica for fit in plan.fits)
    if on_gpu and plan.recipe.cluster.gpu_memory_gib is None:
        yield f"{ASSUMED_GPU_MEMORY_GIB:g} GiB a GPU is assumed: set cluster.gpu_memory_gib"
    if plan.problems is None:
        yield "the number of problems is unknown before the data is loaded: set data.N.size"
    for fit in plan.fits:
        yield from _notes_on(fit, plan.recipe.limits.max_solution_tokens)


def _notes_on(fit: ModelFit, longest: int) -> Iterator[str]:
    model = fit.settings
    if model.engine != "fake" and fit.shape is None:
        yield (
            f"the size of {model.model} is unknown: set {fit.where}.model to a folder with its "
            "config.json, or download it to the Hugging Face cache"
        )
    elif fit.shape and fit.weight_bytes is None:
        yield f"the size of {fit.where} with quantization {fit.quantization} is unknown"
    if fit.context and fit.context - longest < NARROW_PROMPT_TOKENS:
        left = max(0, fit.context - longest)
        yield (
            f"{fit.where} reads {fit.context} tokens: beside a solution of "
            f"limits.max_solution_tokens={longest} that leaves {left} for the problem"
        )
    if fit.sequences is not None and fit.sequences < model.max_batch:
        yield f"{fit.where}.max_batch={model.max_batch} is more than its KV cache holds in full"
