"""The embedded checkpoints: their shapes, training settings and folders.

Everything a training run depends on stands in this table, so that one command and one seed
give the same model again. Head size is 32, the smallest that vLLM serves on a CPU.
"""

from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent / "models"
HEAD_SIZE = 32
CONTEXT_TOKENS = 512


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
# The PRM is built in two stages. A copy of this policy learns to continue solutions in the PRM's
# layout (READER) and is then frozen. Layers of its own above learn to tell what was written from
# what the reader expects.
PRM_STARTS_FROM = LADDER["policy-0.6m"]
READER = Member("prm-reader", PRM_STARTS_FROM.shape, Training(900, 32, 1.5e-3, 60_000, 5, 5))
PRM = Member("prm-1m", Shape(128, 6, 320, 4, 2), Training(1_300, 24, 1.5e-3, 50_000, 4, 4))
# It learns from what these policies write.
PRM_SEES = (LADDER["policy-0.1m"], LADDER["policy-0.6m"])
