"""Shapes of models that recipes often name, for a plan where their files are not.

Source of every row: config.json of the model's repository on the Hugging Face hub, under the id
in the table. Rows of PRMs follow from the model they were trained from, with the head that their
model card or code gives.
"""

from dataclasses import replace

from jobs.model_shapes import ModelShape

_LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256, 131072)
_MISTRAL_7B = ModelShape(32, 4096, 14336, 32, 8, 128, 32000, 32768)
_QWEN_1_5B = ModelShape(28, 1536, 8960, 12, 2, 128, 151936, 32768, tied=True, qkv_bias=True)
_QWEN_7B = ModelShape(28, 3584, 18944, 28, 4, 128, 152064, 32768, tied=False, qkv_bias=True)
_QWEN_72B = ModelShape(80, 8192, 29568, 64, 8, 128, 152064, 32768, tied=False, qkv_bias=True)
# Qwen2.5-Math and what was trained from it read no further.
_MATH_CONTEXT = 4096


def _step_classes(base: ModelShape, context: int) -> ModelShape:
    """Qwen2ForProcessRewardModel: two linear layers in place of the output embedding."""
    head = base.hidden * (base.hidden + 1) + 2 * (base.hidden + 1)
    return replace(base, context=context, keeps_output=False, head_parameters=head)


def _value_head(base: ModelShape) -> ModelShape:
    """Skywork-o1-Open-PRM: one linear layer beside the output embedding."""
    return replace(base, context=_MATH_CONTEXT, head_parameters=base.hidden + 1)


KNOWN_MODELS = {
    "meta-llama/Llama-3.2-1B-Instruct": ModelShape(
        16, 2048, 8192, 32, 8, 64, 128256, 131072, tied=True
    ),
    "meta-llama/Llama-3.2-3B-Instruct": ModelShape(
        28, 3072, 8192, 24, 8, 128, 128256, 131072, tied=True
    ),
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "Qwen/Qwen2.5-0.5B-Instruct": ModelShape(
        24, 896, 4864, 14, 2, 64, 151936, 32768, tied=True, qkv_bias=True
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN_1_5B,
    "Qwen/Qwen2.5-3B-Instruct": ModelShape(
        36, 2048, 11008, 16, 2, 128, 151936, 32768, tied=True, qkv_bias=True
    ),
    "Qwen/Qwen2.5-7B-Instruct": _QWEN_7B,
    "Qwen/Qwen2.5-14B-Instruct": ModelShape(
        48, 5120, 13824, 40, 8, 128, 152064, 32768, tied=False, qkv_bias=True
    ),
    "Qwen/Qwen2.5-32B-Instruct": ModelShape(
        64, 5120, 27648, 40, 8, 128, 152064, 32768, tied=False, qkv_bias=True
    ),
    "Qwen/Qwen2.5-72B-Instruct": _QWEN_72B,
    "Qwen/Qwen2.5-Math-1.5B-Instruct": replace(_QWEN_1_5B, context=_MATH_CONTEXT),
    "Qwen/Qwen2.5-Math-7B-Instruct": replace(_QWEN_7B, context=_MATH_CONTEXT),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": replace(_QWEN_1_5B, context=131072, tied=False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": replace(_QWEN_7B, context=131072),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ModelShape(
        30, 576, 1536, 9, 3, 64, 49152, 8192, tied=True
    ),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ModelShape(
        32, 960, 2560, 15, 5, 64, 49152, 8192, tied=True
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ModelShape(
        24, 2048, 8192, 32, 32, 64, 49152, 8192, tied=True
    ),
    # PRMs
    "Qwen/Qwen2.5-Math-PRM-7B": _step_classes(_QWEN_7B, _MATH_CONTEXT),
    "Qwen/Qwen2.5-Math-PRM-72B": _step_classes(_QWEN_72B, _MATH_CONTEXT),
    "Gen-Verse/ReasonFlux-PRM-7B": _step_classes(_QWEN_7B, 32768),
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B": _value_head(_QWEN_1_5B),
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B": _value_head(_QWEN_7B),
    "peiyi9979/math-shepherd-mistral-7b-prm": _MISTRAL_7B,
    "RLHFlow/Llama3.1-8B-PRM-Mistral-Data": _LLAMA_8B,
    "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data": _LLAMA_8B,
}
