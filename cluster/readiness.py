"""Which replicas answer, by Serve's own account, for those who watch and those who wait.

A run waits for the first one, and a little for the others.

Invariant: a run starts when it can, with the replicas that have found machines by then; the others
join it when they come (cluster/deploy.py).
"""

import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cluster.sharing import Use
from search.errors import one_line

# When the first replica is ready the others are waited for this long.
OTHERS_WAIT_S = 20.0
LOOK_INTERVAL_S, SAID_INTERVAL_S = 0.1, 30.0
# What Serve does not tell apart in the first half minute.
NO_REASON = "a machine is awaited, or the model is loading"
# Those of a machine that is about to leave answer until others have taken their place.
ANSWERING = ("RUNNING", "PENDING_MIGRATION")
# By application: those that are ready, and those that are or will be.
Replicas: TypeAlias = "Mapping[str, tuple[int, int]]"

log = logging.getLogger("branchwise")


@dataclass(slots=True)
class Patience:
    """How long replicas are waited for, and what is said meanwhile.

    machines_timeout_s: until the first one is ready; None waits as long as it takes.
    """

    what: str
    machines_timeout_s: float | None
    _begun_s: float = field(default_factory=time.monotonic)
    _said_s: float = field(default_factory=time.monotonic)

    def wait_on(self, wanted: int, why: str) -> None:
        """Called while none is ready; raises TimeoutError when that has been so for too long."""
        waited_s = time.monotonic() - self._begun_s
        if self.machines_timeout_s is not None and waited_s > self.machines_timeout_s:
            raise TimeoutError(
                f"none of {wanted} replicas was ready within cluster.machines_timeout_s = "
                f"{self.machines_timeout_s:g} (raise it if machines or the model take longer): "
                f"{why or NO_REASON}"
            )
        if time.monotonic() - self._said_s > SAID_INTERVAL_S:
            self._said_s = time.monotonic()
            log.info("waiting for %s for %.0f s: %s", self.what, waited_s, why or NO_REASON)


async def first_ready(
    application: str,
    wanted: int,
    use: Use,
    deploy: Callable[[], Awaitable[None]],
    patience: Patience,
) -> int:
    """How many replicas are ready, at least one; deploys the application if that is for this run.

    Raises RuntimeError if it cannot start, and TimeoutError as `Patience` does.
    """
    since_s: float | None = None
    while True:
        state = await _state(application)
        if await use.deploys(state is not None):
            await deploy()
            continue
        running = _ready(state) if state else 0
        if running:
            since_s = since_s or time.monotonic()
            if running >= wanted or time.monotonic() - since_s > OTHERS_WAIT_S:
                return running
        else:
            patience.wait_on(wanted, _why(state) if state else "another run deploys it")
        await asyncio.sleep(LOOK_INTERVAL_S)


async def ready_replicas(application: str) -> int:
    """How many replicas answer now."""
    state = await _state(application)
    return _ready(state) if state else 0


async def _state(application: str) -> Any:
    """Serve's status of an application; None if there is none."""
    from ray import serve

    state = (await asyncio.to_thread(serve.status)).applications.get(application)
    if state is not None and state.status == "DEPLOY_FAILED":
        # That of a deployment names the cause, that of the application only the deployment.
        said = [state.message, *(each.message for each in state.deployments.values())]
        raise RuntimeError("\n".join(filter(None, said)))
    return state


def _ready(state: Any) -> int:
    return counted(state.deployments.values())[0]


def _why(state: Any) -> str:
    """What Serve says of replicas that are not ready, such as that no machine has room."""
    return one_line(" ".join(each.message for each in state.deployments.values() if each.message))


def replicas_ready() -> Replicas:
    """Of each application; nothing while Serve does not run or does not answer. Takes a while."""
    # Whoever imports it first must have set its environment (`cluster.connect`).
    if "ray.serve" not in sys.modules:
        return {}
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    if not ray.is_initialized():
        return {}
    try:
        applications = serve.status().applications
    except (RayError, RayServeException, TimeoutError, RuntimeError):
        return {}
    return {name: counted(each.deployments.values()) for name, each in applications.items()}


def counted(deployments: Iterable[Any]) -> tuple[int, int]:
    """How many replicas of an application answer, and how many do or will."""
    states: Counter[str] = Counter()
    for each in deployments:
        states.update(each.replica_states)
    return sum(states[name] for name in ANSWERING), states.total() - states["STOPPING"]
