"""The embedded checkpoints: their shapes, training settings and folders.

Everything a training run depends on stands in this table, so that one command and one seed
give the same model again. Head size is 32, the smallest that vLLM serves on a CPU.
"""

from dataclasses import asdict, dataclass
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
    """How one checkpoint was trained; `examples` is the size of the pool drawn from.

    A cycle is one whole schedule of `steps`, with examples and draws of its own; a later cycle
    goes on from the weights of the one before (warm restarts, arXiv 1608.03983).
    """

    steps: int
    batch: int
    learning_rate: float
    examples: int
    seed: int
    cycles: int = 1

    def cycle_seed(self, cycle: int) -> int:
        """The seed of a cycle's examples and draws; cycle 0 has the training's own."""
        return self.seed + 10 * cycle


@dataclass(frozen=True, slots=True)
class Member:
    """One checkpoint of the repository."""

    name: str
    shape: Shape
    training: Training

    @property
    def folder(self) -> Path:
        return MODELS / self.name

    def settings(self) -> dict[str, dict[str, float]]:
        return {"shape": asdict(self.shape), "training": asdict(self.training)}


LADDER = {
    member.name: member
    for member in (
        Member("policy-0.1m", Shape(64, 2, 128, 2, 1), Training(6_000, 64, 5e-3, 400_000, 1)),
        Member("policy-0.6m", Shape(128, 3, 320, 4, 2), Training(6_000, 48, 2.5e-3, 300_000, 2)),
        Member("policy-3m", Shape(256, 4, 704, 8, 4), Training(2_800, 24, 1.2e-3, 120_000, 3, 2)),
    )
}
# The PRM's first layers start from this policy's weights. What they expect to be written next is
# only known at their top, so comparing it with what was written takes layers of its own above.
PRM_STARTS_FROM = LADDER["policy-0.6m"]
PRM = Member("prm-1m", Shape(128, 6, 320, 4, 2), Training(2_400, 24, 1e-3, 50_000, 4))
# It learns from what these policies write.
PRM_SEES = (LADDER["policy-0.1m"], LADDER["policy-0.6m"])
