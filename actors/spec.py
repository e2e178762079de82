"""What a replica must know to load one model; plain data that crosses process borders."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One policy or PRM deployment.

    `model` is a folder or a Hugging Face id; `dtype` a torch dtype's name; `max_batch` how many
    sequences a replica computes together; `family` is empty for a policy; `options` go to the
    engine as they are.
    """

    name: str
    model: str
    engine: str
    dtype: str
    replicas: int = 1
    gpus_per_replica: float = 0
    cpus_per_replica: float = 1
    max_ongoing_requests: int = 256
    max_batch: int = 64
    system_prompt: str = ""
    family: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a loaded model says of itself: its parameter count, and where it runs."""

    parameters: int
    device: str
    replica: str = ""
