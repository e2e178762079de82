"""PRM families as data: how a solution is laid out for the PRM and how a reward is read off."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PRMFamily:
    """A token-wise PRM: a reward stands at every separator.

    The reward of a step is the softmax over the model's classes at the separator that follows
    the step, taken at `reward_class`.
    """

    system_prompt: str
    separator: str
    reward_class: int


PRM_FAMILIES = {
    # Model card of Qwen/Qwen2.5-Math-PRM-7B: steps joined by <extra_0>, one at the end.
    "qwen2.5-math-prm": PRMFamily(
        system_prompt="Please reason step by step, and put your final answer within \\boxed{}.",
        separator="<extra_0>",
        reward_class=1,
    ),
}
