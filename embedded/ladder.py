"""The embedded checkpoints: their shapes, training settings and folders.

Everything a training run depends on stands in this table, so that one command and one seed
give the same model again. Head size is 32, the smallest that vLLM serves on a CPU.
"""

import math
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent / "models"
HEAD_SIZE = 32
CONTEXT_TOKENS = 512
ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen2 decoder: width, layers, feed-forward width, query and key-value heads."""

    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int


@dataclass(frozen=True, slots=True)
class Training:
    """How one checkpoint was trained.

    `examples` is the size of the pool drawn from, `stream` the range of problem seeds it is made
    of, `seed` draws everything else.
    """

    steps: int
    batch: int
    learning_rate: float
    examples: int
    seed: int
    stream: int

    def rate_at(self, step: int) -> float:
        """Linear warm-up over 2 % of the steps, then a cosine to zero."""
        warm_up = max(1, self.steps // 50)
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        part = (step - warm_up) / max(1, self.steps - warm_up)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


@dataclass(frozen=True, slots=True)
class Member:
    """One checkpoint of the repository; `grown_from` names a smaller one it starts as."""

    name: str
    shape: Shape
    training: Training
    grown_from: str = ""

    @property
    def folder(self) -> Path:
        return MODELS / self.name


LADDER = {
    member.name: member
    for member in (
        Member("policy-0.1m", Shape(64, 2, 128, 2, 1), Training(6_000, 64, 5e-3, 400_000, 1, 1)),
        Member("policy-0.6m", Shape(128, 3, 320, 4, 2), Training(6_000, 48, 2.5e-3, 300_000, 2, 2)),
        Member(
            "policy-3m",
            Shape(256, 4, 704, 8, 4),
            Training(2_000, 24, 8e-4, 100_000, 3, 3),
            grown_from="policy-0.6m",
        ),
    )
}
# The PRM is built in three stages. A copy of this policy learns to continue solutions in the PRM's
# layout (READER) and is then frozen, inside a wider model. Two layers above learn to say how
# surprised it is by every token (SURPRISE: examples are rows, the batch is in tokens); the last
# one and the head learn from labels.
PRM_STARTS_FROM = LADDER["policy-0.6m"]
READER = Member("prm-reader", PRM_STARTS_FROM.shape, Training(4_500, 32, 1.5e-3, 150_000, 5, 5))
SURPRISE = Training(4_000, 1_024, 3e-3, 3_000, 6, 4)
PRM = Member("prm-2m", Shape(192, 6, 320, 6, 3), Training(2_000, 24, 2e-3, 50_000, 4, 4))
# It learns from what these policies write.
PRM_SEES = tuple(LADDER.values())
