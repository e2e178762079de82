"""How busy a replica is, told to Ray's metrics every few seconds.

Invariant: what a request costs here is its share of an addition for all that are answered
together; a timer sets the metrics, and rests while the replica does.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from actors.metrics import REPLICA_METRICS, REPLICA_TAGS, Exported

INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Sequences in an engine's batch, and those that wait for a place in it."""

    running: int
    queued: int


class Load:
    """Counts the requests of one replica.

    replica: its name; outside of Serve it is empty, and nothing is told. engine: asked for what is
    in its batch, if the engine knows that; batch: how much can be.
    """

    def __init__(
        self,
        deployment: str,
        replica: str,
        batch: int,
        engine: Callable[[], EngineLoad] | None = None,
    ) -> None:
        self._tags = dict(zip(REPLICA_TAGS, (deployment, replica), strict=True))
        self._is_told = bool(replica)
        self._batch, self._engine = batch, engine
        self._requests = self._answered = self._told = 0
        self._timer: asyncio.Handle | None = None
        self._metrics: Exported | None = None

    def add(self, requests: int) -> None:
        """Counts requests that came, or, below zero, those that are over."""
        self._requests += requests
        if requests < 0:
            self._answered -= requests
        elif requests and self._is_told and self._timer is None:
            self._timer = asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        metrics = self._metrics = self._metrics or Exported(REPLICA_METRICS, self._tags)
        metrics.set("replica_requests", self._requests)
        metrics.count("replica_answered", self._answered)
        if self._engine is not None:
            # A scheduler that has nothing to do says nothing new.
            load = self._engine() if self._requests else EngineLoad(0, 0)
            metrics.set("replica_running", load.running)
            metrics.set("replica_queued", load.queued)
            metrics.set("replica_batch", self._batch)
        # It rests only when an interval brought nothing: many short bursts are told as one.
        has_news, self._told = self._answered != self._told, self._answered
        self._timer = None
        if self._requests or has_news:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._tell)
