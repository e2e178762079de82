"""What a replica must know to load one model; plain data that crosses process borders."""

from dataclasses import dataclass, field
from typing import Any

from actors.prompts import PromptStyle

# Options of a PRM that say how it is read, whatever engine runs it.
OWN_OPTIONS = ("family", "compat")


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """How many replicas there are: as many as keep `target` sequences under way in each.

    The delays, in seconds, are how long more or fewer must have been wanted.
    """

    least: int
    most: int
    target: float
    upscale_delay_s: float
    downscale_delay_s: float


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One policy or PRM deployment.

    `model` is a folder or a Hugging Face id; `dtype` a torch dtype's name; `max_batch` how many
    sequences a replica computes together; `prompt` is the policy's, `system_prompt` and `family`
    are the PRM's (`family` is empty for a policy); `options` go to the engine as they are, but
    for `OWN_OPTIONS`.
    """

    name: str
    model: str
    engine: str
    dtype: str
    replicas: int = 1
    gpus_per_replica: float = 0
    cpus_per_replica: float = 1
    max_ongoing_requests: int = 4096
    max_batch: int = 64
    prompt: PromptStyle = field(default_factory=PromptStyle)
    system_prompt: str = ""
    family: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    autoscaling: Autoscaling | None = None

    @property
    def most_replicas(self) -> int:
        """How many there are at most; `replicas` are there from the start."""
        return self.autoscaling.most if self.autoscaling else self.replicas

    def engine_options(self) -> dict[str, Any]:
        """The options without those that Branchwise reads itself."""
        return {key: value for key, value in self.options.items() if key not in OWN_OPTIONS}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a loaded model says of itself: its parameter count, and where it runs."""

    parameters: int
    device: str
    replica: str = ""
