"""`headline` and `regression` in a recipe: the number that stands for a run, and when it is bad."""

from typing import Literal

from pydantic import Field, PositiveFloat

from jobs.data import PositiveInt, Section, optional
from search.rewards import Reduction


class HeadlineSettings(Section):
    """Which search stands for the run, in the table `runs`, in its history and in its check."""

    policy: str | None = optional("Name of its policy; the last one if null")
    strategy: str | None = optional("Its strategy; that of the first search if null")
    variant: str | None = optional("Its variant as tables name it; the first one if null")
    n: PositiveInt | None = optional("Its N; the largest of the search if null")
    reduction: Reduction = Field(
        default=Reduction.LAST, description="Reduction of the scores that vote"
    )
    vote: Literal["majority", "max", "weighted", "pass"] | None = optional(
        "How solutions become an answer; weighted if null, majority without a PRM"
    )


class RegressionSettings(Section):
    """What a dated run may be worse by than those before it."""

    against: Literal["previous", "median"] = Field(
        default="previous", description="The run before it, or the one in the middle of the last"
    )
    nights: PositiveInt = Field(default=7, description="Runs before it that median looks at")
    max_drop: float | None = Field(
        default=0.02, ge=0, le=1, description="Accuracy that may be lost, 0.02 is two points"
    )
    confident: bool = Field(
        default=True, description="A drop counts only if its 95 % interval is below zero"
    )
    max_cost_increase: PositiveFloat | None = optional(
        "Share by which a problem may cost more: 0.2 is a fifth; not looked at if null"
    )
    max_slowdown: PositiveFloat | None = Field(
        default=None,
        le=1,
        description="Share of policy tokens a second that may be lost; not looked at if null",
    )
