"""Whether models fit their GPUs: memory of weights and KV cache, from shapes and the recipe.

Invariant: what is refused here could not have started on such a GPU whatever vLLM does; what
passes may still be tight, for the working memory of an engine is only estimated.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import JsonValue

from actors.engines.vllm_start import CPU_DEFAULTS
from jobs.engine_checks import MEMORY_SHARE, world_size
from jobs.model_shapes import ModelShape, shape_of
from jobs.settings import ModelSettings, Recipe
from search.errors import RecipeError

GIB = 1 << 30
ASSUMED_GPU_MEMORY_GIB = 80.0
# vllm/config/cache.py of vLLM 0.32.
VLLM_MEMORY_SHARE = 0.92
# What vLLM takes of its share beside weights and cache: activations, CUDA graphs, CUDA itself.
VLLM_WORKING_BYTES = 2 * GIB
# Of actors/engines/transformers_policy.py, which loads torch.
TRANSFORMERS_STORE_BYTES = 1 * GIB
# System prompt, chat template and problem, for a problem of ordinary length.
PROMPT_ALLOWANCE_TOKENS = 512
BYTES_OF_DTYPE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# Bytes of one weight; four bits come with a scale and a zero point for each group of 128.
FOUR_BITS = 0.5 + 2.5 / 128
BYTES_OF_QUANTIZED = {
    "fp8": 1.0,
    "awq": FOUR_BITS,
    "awq_marlin": FOUR_BITS,
    "gptq": FOUR_BITS,
    "gptq_marlin": FOUR_BITS,
    "bitsandbytes": FOUR_BITS,
}


@dataclass(frozen=True, slots=True)
class ModelFit:
    """The memory of one model on one of its GPUs, or in RAM without; None where unknown.

    `share_bytes`: what its engine may take; `kv_room_bytes`: what of it is left for the KV
    cache; `sequences`: how many of full length that holds at once, up to `max_batch`.
    """

    where: str
    settings: ModelSettings
    shape: ModelShape | None
    share_bytes: float | None
    weight_bytes: float | None
    kv_token_bytes: float | None
    kv_room_bytes: float | None
    sequence_tokens: int

    @property
    def quantization(self) -> str:
        """Its method, from the recipe or the checkpoint; empty if there is none."""
        own = self.shape.quantization if self.shape else ""
        return str(self.settings.options.get("quantization") or own)

    @property
    def context(self) -> int | None:
        """The longest sequence the engine is asked to hold."""
        given = self.settings.options.get("max_model_len")
        if isinstance(given, int) and given > 0:
            return given
        return self.shape.context if self.shape else None

    @property
    def sequences(self) -> int | None:
        if not self.kv_token_bytes or self.kv_room_bytes is None:
            return None
        held = int(self.kv_room_bytes // (self.kv_token_bytes * self.sequence_tokens))
        return max(0, min(held, self.settings.max_batch))


def gpu_memory_gib(recipe: Recipe) -> float:
    """Of one GPU, in GiB: the recipe's, or what is assumed."""
    return recipe.cluster.gpu_memory_gib or ASSUMED_GPU_MEMORY_GIB


def model_fits(recipe: Recipe) -> list[ModelFit]:
    """One for each policy, in order, and one for the PRM."""
    models: list[tuple[str, ModelSettings]] = [
        (f"policies.{place}", policy) for place, policy in enumerate(recipe.policies)
    ]
    models += [("prm", recipe.prm)] if recipe.prm else []
    tokens = recipe.limits.max_solution_tokens + PROMPT_ALLOWANCE_TOKENS
    return [_fit(where, model, gpu_memory_gib(recipe) * GIB, tokens) for where, model in models]


def _fit(where: str, model: ModelSettings, gpu_bytes: float, tokens: int) -> ModelFit:
    shape = None if model.engine == "fake" else shape_of(model.model)
    share = _share_bytes(model, gpu_bytes)
    weights = _weight_bytes(model, shape) if shape else None
    kv_token = _kv_token_bytes(model, shape) if shape else None
    room = _kv_room_bytes(model, share, weights)
    tokens = min(tokens, shape.context) if shape else tokens
    return ModelFit(where, model, shape, share, weights, kv_token, room, tokens)


def _share_bytes(model: ModelSettings, gpu_bytes: float) -> float | None:
    if not model.gpus_per_replica or model.engine == "fake":
        return None
    if model.engine == "transformers":
        return gpu_bytes * min(1.0, model.gpus_per_replica)
    return gpu_bytes * _number(model.options.get(MEMORY_SHARE), VLLM_MEMORY_SHARE)


def _weight_bytes(model: ModelSettings, shape: ModelShape) -> float | None:
    """On one GPU; None for a quantization whose size is not known here."""
    full = BYTES_OF_DTYPE[model.dtype or "float64"]
    method = str(model.options.get("quantization") or shape.quantization)
    small = BYTES_OF_QUANTIZED.get(method) if method else full
    if small is None:
        return None
    kept = min(shape.embedding_parameters, shape.parameters)
    return (kept * full + (shape.parameters - kept) * small) / world_size(model)


def _kv_token_bytes(model: ModelSettings, shape: ModelShape) -> float:
    """Of one token on one GPU; a GPU has at least one head of every layer it runs."""
    eight_bits = str(model.options.get("kv_cache_dtype", "")).startswith("fp8")
    number = 1 if eight_bits else BYTES_OF_DTYPE[model.dtype or "float64"]
    tensor = int(_number(model.options.get("tensor_parallel_size"), 1))
    heads = max(1.0, shape.kv_heads / tensor)
    layers = shape.layers * tensor / world_size(model)
    return 2 * layers * heads * shape.head_size * number


def _kv_room_bytes(
    model: ModelSettings, share: float | None, weights: float | None
) -> float | None:
    if model.engine == "fake":
        return None
    given = {"vllm": "kv_cache_memory_bytes"}.get(model.engine, "kv_store_bytes")
    if given in model.options:
        return _number(model.options[given], 0)
    if share is None:
        vllm_bytes = _number(CPU_DEFAULTS["kv_cache_memory_bytes"], 0)
        return vllm_bytes if model.engine == "vllm" else TRANSFORMERS_STORE_BYTES
    working = VLLM_WORKING_BYTES if model.engine == "vllm" else 0
    return None if weights is None else max(0.0, share - weights - working)


def _number(value: JsonValue, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise


def check_fit(recipe: Recipe) -> None:
    """Refuses models that cannot fit, in one line; says nothing of models it does not know."""
    complaint = next(fit_complaints(recipe), None)
    if complaint:
        raise RecipeError(complaint)


def fit_complaints(recipe: Recipe) -> Iterator[str]:
    """What to change, one line a model."""
    for fit in model_fits(recipe):
        faults = (
            _context_fault(fit, recipe.limits.max_solution_tokens),
            _weight_fault(fit, recipe),
            _cache_fault(fit),
        )
        yield from filter(None, faults)


def _context_fault(fit: ModelFit, longest: int) -> str:
    stretched = "hf_overrides" in fit.settings.options
    if fit.settings.engine != "vllm" or stretched or not fit.context or longest < fit.context:
        return ""
    return (
        f"limits.max_solution_tokens={longest} does not fit the context of {fit.context} tokens of "
        f"{fit.where} ({fit.settings.model}): lower it, or use a model that reads further"
    )


def _weight_fault(fit: ModelFit, recipe: Recipe) -> str:
    if fit.share_bytes is None or fit.weight_bytes is None or fit.weight_bytes <= fit.share_bytes:
        return ""
    told = recipe.cluster.gpu_memory_gib
    one = f"a GPU of {gpu_memory_gib(recipe):g} GiB"
    unless = "" if told else "; if your GPUs have more than is assumed, set cluster.gpu_memory_gib"
    return (
        f"{fit.where}: the weights of {fit.settings.model} take {readable(fit.weight_bytes)} and "
        f"its share of {one} is {readable(fit.share_bytes)}: {_remedy(fit.settings)}{unless}"
    )


def _remedy(model: ModelSettings) -> str:
    if model.engine == "transformers":
        return "use a smaller model or dtype, or engine: vllm"
    if model.gpus_per_replica < 1:
        return "raise gpus_per_replica"
    return "raise options.tensor_parallel_size and gpus_per_replica, or quantize"


def _cache_fault(fit: ModelFit) -> str:
    """vLLM starts only if its cache holds one sequence of the whole context."""
    room, token, context = _most_room_bytes(fit), fit.kv_token_bytes, fit.context
    if fit.settings.engine != "vllm" or room is None or not token or not context:
        return ""
    if context * token <= room:
        return ""
    return (
        f"{fit.where}: vLLM cannot hold one sequence of {context} tokens in a KV cache of "
        f"{readable(room)}: set options.max_model_len: {min(fit.sequence_tokens, context)} or so, "
        "or give it more memory"
    )


def _most_room_bytes(fit: ModelFit) -> float | None:
    """For the cache, if the engine needs no memory to work in: that is estimated only."""
    if fit.share_bytes is None or "kv_cache_memory_bytes" in fit.settings.options:
        return fit.kv_room_bytes
    # Weights that do not fit are another fault.
    room = fit.share_bytes - (fit.weight_bytes or 0)
    return room if fit.weight_bytes and room > 0 else None


def readable(size: float) -> str:
    """Bytes as GiB, or as MiB if few."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
