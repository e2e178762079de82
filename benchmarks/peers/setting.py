"""What all contestants share: problems, models, engine flags, limits, sampling, seeds.

Everything comes from the demo's recipe. Invariant: an engine in this process, in the OpenAI server
and in a Serve replica gets the same flags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.prm_families import PRM_FAMILIES
from actors.spec import ModelSpec
from cluster.admission import Admission
from cluster.repository import REPOSITORY
from jobs.data import load_problems
from jobs.recipe import load_recipe
from search.config import Limits, SearchConfig
from search.problem import Problem
from search.protocols import Sampling
from search.rewards import Reduction
from search.strategies import STRATEGIES, keep_count

RECIPE = Path("jobs/recipes/demo.yaml")
MODELS = REPOSITORY / "embedded" / "models"
FAMILY = "qwen2.5-math-prm"
BRANCHING = 4
MAX_BATCH = 64
# Of each of the demo's three kinds of problems.
SIZES, TOY_SIZES = (12, 6, 6), (2, 1, 1)
NS, TOY_NS = (16, 64), (8,)


@dataclass(frozen=True, slots=True)
class Setting:
    """One benchmark's problems, N, and how a solution is written."""

    problems: tuple[Problem, ...]
    ns: tuple[int, ...]
    limits: Limits
    sampling: Sampling
    solutions_per_unit: int
    admission: Admission
    policy: ModelSpec
    prm: ModelSpec

    def config(self, strategy: str, n: int, seed: int) -> SearchConfig:
        """One search; a rule that Branchwise does not have is named, not run, by it."""
        known = strategy in STRATEGIES
        branching = BRANCHING if not known or STRATEGIES[strategy].branches else 1
        keep = keep_count(strategy, n, branching) if known else n // branching
        return SearchConfig(
            strategy, n, branching, keep, Reduction.LAST, seed, self.limits, self.sampling
        )


def load_setting(toy: bool) -> Setting:
    """The demo's problems, limits and sampling, and the smallest of its policies."""
    recipe = load_recipe(REPOSITORY / RECIPE)
    sizes = TOY_SIZES if toy else SIZES
    pairs = zip(recipe.data, sizes, strict=True)
    sources = [source.model_copy(update={"size": size}) for source, size in pairs]
    problems = [problem for problem in load_problems(sources) if isinstance(problem, Problem)]
    limits = Limits(**recipe.limits.model_dump())
    sampling = Sampling(**recipe.sampling.model_dump())
    work = (recipe.work.solutions_per_unit, Admission(MAX_BATCH, recipe.work.solutions_per_unit))
    ns = TOY_NS if toy else NS
    return Setting(tuple(problems), ns, limits, sampling, *work, *models())


def models() -> tuple[ModelSpec, ModelSpec]:
    """Policy and PRM on vLLM, float32, with one core's worth of threads each."""
    # A larger policy answers nearly all problems at these N, and accuracies could not differ.
    policy, prm = str(MODELS / "policy-0.1m"), str(MODELS / "prm-2m")
    system = PRM_FAMILIES[FAMILY].system_prompt
    return (
        ModelSpec("policy", policy, "vllm", "float32", max_batch=MAX_BATCH),
        ModelSpec(
            "prm", prm, "vllm", "float32", max_batch=MAX_BATCH, system_prompt=system, family=FAMILY
        ),
    )


def server_arguments(policy: ModelSpec, port: int) -> Sequence[str]:
    """The command line of vLLM's OpenAI server with the flags of `actors.engines.vllm_start`."""
    from actors.engines.vllm_start import engine_arguments

    same = engine_arguments(policy, {})
    return (
        *("--model", same.model, "--served-model-name", policy.name, "--dtype", str(same.dtype)),
        *("--max-num-seqs", str(same.max_num_seqs), "--seed", str(same.seed)),
        *("--block-size", str(same.block_size), "--enforce-eager", "--enable-prefix-caching"),
        *("--kv-cache-memory-bytes", str(same.kv_cache_memory_bytes)),
        *("--generation-config", "vllm", "--disable-uvicorn-access-log"),
        *("--host", "127.0.0.1", "--port", str(port)),
    )
