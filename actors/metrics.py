"""Metrics that Prometheus reads through Ray: how one is declared, and those of a replica.

Ray puts `ray_` before each name and `_total` behind a counter's, and its agent on each machine
offers them to Prometheus. Invariant: where no agent runs, setting a metric does nothing and costs
nothing that counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric. `meaning` is for readers; a counter only grows, a gauge goes up and down."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str

    @property
    def ray_name(self) -> str:
        """What Ray is told."""
        return f"branchwise_{self.name}"

    @property
    def exported(self) -> str:
        """What Prometheus sees."""
        return f"ray_{self.ray_name}" + ("_total" if self.kind == "counter" else "")


REPLICA_TAGS = ("deployment", "replica")
REPLICA_METRICS = (
    Declared("replica_requests", "gauge", "requests that a replica has and has not answered"),
    Declared("replica_answered", "counter", "requests that a replica has answered or dropped"),
    Declared("replica_running", "gauge", "sequences in the batch of its engine"),
    Declared("replica_queued", "gauge", "sequences that wait for a place in that batch"),
    Declared("replica_batch", "gauge", "how many sequences that batch holds"),
)


class Exported:
    """Declared metrics of this process, with the tags that all of them have."""

    def __init__(self, declared: Sequence[Declared], tags: Mapping[str, str]) -> None:
        self._counted: dict[str, float] = {}
        self._metrics = {each.name: _of_ray(each, tags) for each in declared}

    def count(self, name: str, so_far: float) -> None:
        """A counter's new sum."""
        more = so_far - self._counted.get(name, 0)
        if more > 0:
            self._metrics[name].inc(more)
            self._counted[name] = so_far

    def set(self, name: str, value: float) -> None:
        """A gauge's new value."""
        self._metrics[name].set(value)


def _of_ray(declared: Declared, tags: Mapping[str, str]) -> Any:
    from ray.util import metrics

    kind = metrics.Counter if declared.kind == "counter" else metrics.Gauge
    made = kind(declared.ray_name, description=declared.meaning, tag_keys=tuple(tags))
    made.set_default_tags(dict(tags))
    # Without a 0 to grow from a counter has no rate, and no fault is no line. `inc` refuses 0.
    made._record(0)
    return made
