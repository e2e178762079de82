"""What the replicas of both roles share: their engine's facts and health, and their name."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from actors.engines import PolicyEngine, PRMEngine
from actors.garbage import collect_seldom
from actors.listener import Answer, Listener
from actors.load import Load
from actors.spec import ModelFacts

# The name under which a replica tells Serve how many sequences are under way in it.
SEQUENCES = "sequences"

Engine = TypeVar("Engine", bound=PolicyEngine | PRMEngine)


class Replica(Generic[Engine]):
    """One replica around an engine; Serve makes as many as the recipe asks for.

    deployment: what metrics call it. batch: how many sequences the engine computes together.
    answer: how it answers a batch.
    """

    # What Serve calls, and may wait for, when it takes a replica away; the class has its own.
    __del__: Any

    def __init__(self, engine: Engine, deployment: str, batch: int, answer: Answer) -> None:
        self._engine = engine
        self._name = replica_name()
        if self._name:
            collect_seldom()
        self._sequences = 0
        self._listener = Listener(answer)
        self.__del__ = self._leave
        self._load = Load(deployment, self._name, batch, getattr(engine, "load", None))

    async def address(self) -> str:
        """Where it takes calls (see `actors.lines`); whoever is told may call it."""
        import ray

        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return await self._listener.address(host)

    def facts(self) -> ModelFacts:
        """Parameters and device of the loaded model."""
        return dataclasses.replace(self._engine.facts(), replica=self._name)

    def check_health(self) -> None:
        """Called by Serve; a replica whose engine broke raises here and is replaced."""
        self._engine.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve where replicas come and go: what `cluster.scaling` decides by."""
        return {SEQUENCES: float(self._sequences)}

    @contextlib.contextmanager
    def _under_way(self, sequences: int) -> Iterator[None]:
        self._sequences += sequences
        try:
            yield
        finally:
            self._sequences -= sequences

    async def forget(self) -> None:
        """Empties the engine's caches, if it has any: for measurements that start cold."""
        forget = getattr(self._engine, "forget", None)
        if forget is not None:
            await forget()

    async def _leave(self) -> None:
        """Finishes what is under way, then closes the engine, whose own processes go with it."""
        await self._listener.leave()
        close = getattr(self._engine, "close", None)
        if close is not None:
            close()


def replica_name() -> str:
    """Serve's id of this replica, or an empty string outside of Serve."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except RayServeException:
        return ""
