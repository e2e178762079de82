"""How long a model's engine takes on a GPU: from the recipe's own measurement, or by roofline.

The roofline is a sum, not a maximum: an iteration reads the weights once (a); each running
sequence reads its KV cache and costs arithmetic (b); each token that is only read costs
arithmetic. So it is up to twice too slow where reading and arithmetic overlap perfectly, and it
leaves out what GPUs of one replica tell each other. Invariant: a model whose shape is not known
gets no timing but an error that says what to give.
"""

from actors.engines.fake import TIMES
from jobs.fit import ModelFit
from jobs.gpu_types import GPUType
from jobs.settings import ModelSettings
from search.budget import FLOPS_PER_PARAMETER_AND_TOKEN
from search.errors import RecipeError
from search.simulated import EngineTiming

# Of an iteration, beside the GPU's work: scheduling, sampling, launching kernels. Assumed of the
# order that vLLM's own loop takes for batches of a few hundred.
ENGINE_OVERHEAD_S = 0.004


def engine_timing(fit: ModelFit, gpu: GPUType, context_tokens: float) -> EngineTiming:
    """What a replica takes, with sequences of `context_tokens` on average in its KV cache."""
    settings = fit.settings
    if settings.timing is not None:
        return EngineTiming(**settings.timing.model_dump(), max_batch=settings.max_batch)
    if settings.engine == "fake":
        return _fake_timing(fit.where, settings)
    return _roofline(fit, gpu, context_tokens)


def _fake_timing(where: str, settings: ModelSettings) -> EngineTiming:
    times = {key: settings.options[key] for key in TIMES if key in settings.options}
    if "iteration_s" not in times:
        raise RecipeError(
            f"{where}: a fake engine takes as long as you say: set options.iteration_s"
        )
    try:
        return EngineTiming(**times, max_batch=settings.max_batch)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}.options: {error}") from None


def _roofline(fit: ModelFit, gpu: GPUType, context_tokens: float) -> EngineTiming:
    if fit.shape is None or fit.weight_bytes is None or fit.kv_token_bytes is None:
        raise RecipeError(
            f"the size of {fit.settings.model} is unknown: set {fit.where}.timing to what you "
            f"measured, or {fit.where}.model to a folder with its config.json"
        )
    gpus = _gpus(fit)
    # Sizes are of one GPU already; of a part of a GPU the speed is a part too.
    bytes_per_s, flops_per_s = gpu.bytes_per_s * min(1.0, gpus), gpu.flops_per_s * gpus
    token_s = FLOPS_PER_PARAMETER_AND_TOKEN * fit.shape.parameters / flops_per_s
    return EngineTiming(
        iteration_s=ENGINE_OVERHEAD_S + fit.weight_bytes / bytes_per_s,
        sequence_s=fit.kv_token_bytes * context_tokens / bytes_per_s + token_s,
        prompt_token_s=token_s,
        max_batch=_batch(fit, context_tokens),
    )


def _gpus(fit: ModelFit) -> float:
    if not fit.settings.gpus_per_replica:
        raise RecipeError(
            f"{fit.where} runs on the CPU, of which no timing is known: set "
            f"{fit.where}.gpus_per_replica, or {fit.where}.timing to what you measured"
        )
    return fit.settings.gpus_per_replica


def _batch(fit: ModelFit, context_tokens: float) -> int:
    """Sequences that run together: as many as asked for, or as the KV cache holds on average."""
    most = fit.settings.max_batch
    if fit.kv_room_bytes is None or not fit.kv_token_bytes:
        return most
    return max(1, min(most, int(fit.kv_room_bytes / (fit.kv_token_bytes * context_tokens))))
