"""Policy and PRM replicas on the cluster, through Ray Serve.

Each model is one Serve application, named by its role, and on a shared cluster by what it is too,
so that runs with the same model share it. Serve starts, watches, replaces and counts replicas, and
tells where they are; work units call them there (`actors.lines`), so each finds its prefixes in the
KV cache of the replica that it keeps to.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import stamina

from actors.lines import answers
from actors.spec import ModelFacts, ModelSpec
from cluster.readiness import Patience, first_ready, ready_replicas
from cluster.routing import Keys, keys_of_replicas
from cluster.scaling import autoscaling_config
from cluster.sharing import OwnUse, SharedUse, Use, application_name
from search.errors import ClusterError, first_cause

# A replica that is gone is noticed by its callers; one that hangs by three checks in a row that it
# does not answer in time.
HEALTH_CHECK_PERIOD_S, HEALTH_CHECK_TIMEOUT_S = 5.0, 10.0
# Serve's own calls to a replica are short; what work units have under way the replica ends itself.
LAST_REQUESTS_S = 0.1
STARTS_OF_SERVE = 5
FOLLOW_INTERVAL_S, LONGEST_LOOK_S = 2.0, 10.0
# A replica that goes when it has just been ready is taken for ready until Serve's next check.
QUESTIONS, FIRST_PAUSE_S = 5, 1.0
# Models are deployed side by side, each in a thread, but Serve can be started once.
_STARTING = threading.Lock()
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@dataclass(slots=True)
class Deployed:
    """A model that answers: what it says of itself, and an affinity key for each replica.

    `keys` follows the replicas that are ready, as long as `deployed` lasts.
    """

    application: str
    facts: ModelFacts
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """The two models of a search, once they answer."""

    policy: Deployed | None
    prm: Deployed | None

    def keys(self) -> Keys:
        """Affinity keys of the replicas that are ready now."""
        policy = self.policy.keys if self.policy else ("",)
        return policy, self.prm.keys if self.prm else ("",)


@contextlib.asynccontextmanager
async def deployed(
    role: str,
    spec: ModelSpec | None,
    *,
    is_shared: bool = False,
    machines_timeout_s: float | None = None,
) -> AsyncIterator["asyncio.Task[Deployed | None]"]:
    """Runs the replicas of one model; they leave when the block ends. No spec, no replicas.

    The block begins at once, so that several models load side by side; await what it is given.
    is_shared: runs with the same model use the same replicas, which leave with the last one.
    machines_timeout_s: how long the first replica may take, if the cluster adds machines.
    """
    if spec is None:
        yield asyncio.create_task(_nothing())
        return
    name = application_name(role, spec) if is_shared else role
    async with SharedUse(name) if is_shared else OwnUse(name) as use:
        patience = Patience(f"{role} {spec.name}", machines_timeout_s)
        started = asyncio.create_task(_started(name, role, spec, use, patience))
        following = asyncio.create_task(_followed(started))
        try:
            yield started
        finally:
            for task in (started, following):
                task.cancel()
            await asyncio.gather(started, following, return_exceptions=True)


async def _nothing() -> None:
    """What a model that there is not answers."""


async def _started(
    name: str, role: str, spec: ModelSpec, use: Use, patience: Patience
) -> Deployed | None:
    """Waits until replicas are ready: all, or those that machines were found for."""
    try:
        await asyncio.to_thread(_start_serve)

        async def deploy() -> None:
            # Not in the thread: Serve notes how to pickle it in a variable of the process.
            application = deployment(role, spec).bind(spec)
            await asyncio.to_thread(_deploy, name, application)

        ready = partial(first_ready, name, spec.replicas, use, deploy, patience)
        return await _answering(name, ready)
    except _failures() as error:
        raise ClusterError(f"the {role} {spec.model!r} did not start: {_reason(error)}") from error


async def _answering(name: str, ready: Callable[[], Awaitable[int]]) -> Deployed:
    """What ready replicas say of themselves; if one goes meanwhile, those that are ready then."""
    questions = stamina.retry_context(
        _failures(), attempts=QUESTIONS, timeout=None, wait_initial=FIRST_PAUSE_S
    )
    async for question in questions:
        # What this raises is for good: an application that could not be deployed is not there.
        running = await ready()
        with question:
            async with _handle(name) as handle:
                facts: ModelFacts = await handle.facts.remote()
                model = Deployed(name, facts, await keys_of_replicas(handle, running))
    return model


def _failures() -> tuple[type[Exception], ...]:
    """What Ray and Serve raise, also in groups, when replicas do not start or have gone."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    return RayError, RayServeException, RuntimeError, TimeoutError, ExceptionGroup


async def _followed(started: "asyncio.Task[Deployed | None]") -> None:
    """Keeps the keys those of the replicas that are ready; what cannot be known stays."""
    model = await asyncio.shield(started)
    while model is not None:
        await asyncio.sleep(FOLLOW_INTERVAL_S)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(LONGEST_LOOK_S):
                await _follow(model)


async def _follow(model: Deployed) -> None:
    """Leaves out replicas that are gone, and asks for all when their number is another."""
    async with asyncio.TaskGroup() as tasks:
        asked = {key: tasks.create_task(answers(key)) for key in model.keys}
    standing = tuple(key for key, answer in asked.items() if answer.result())
    model.keys = standing or model.keys
    running = await ready_replicas(model.application)
    if running and running != len(standing):
        async with _handle(model.application) as handle:
            model.keys = await keys_of_replicas(handle, running)


@contextlib.asynccontextmanager
async def _handle(application: str) -> AsyncIterator[Any]:
    """Serve's handle, which else goes on telling its controller things after the cluster's end."""
    from ray import serve

    handle = serve.get_app_handle(application)
    try:
        yield handle
    finally:
        await handle.shutdown_async()


def _deploy(name: str, application: Any) -> None:
    from ray import serve
    from ray.serve.api import RunTarget

    target = RunTarget(target=application, name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


def _start_serve() -> None:
    from ray import serve
    from ray.exceptions import ActorAlreadyExistsError

    # Another run on the cluster may start it at this moment.
    attempts = stamina.retry_context(on=ActorAlreadyExistsError, attempts=STARTS_OF_SERVE)
    with _STARTING:
        for attempt in attempts:
            with attempt:
                # Nothing calls over HTTP: without a proxy Serve starts faster and takes no port.
                serve.start(proxy_location="Disabled")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def deployment(role: str, spec: ModelSpec) -> Any:
    """The Serve deployment for a role ("policy" or "prm")."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from actors.policy import PolicyReplica
    from actors.prm import PRMReplica

    replica = PolicyReplica if role.startswith("policy") else PRMReplica
    scaling = spec.autoscaling
    return serve.deployment(
        name=replica.__name__,
        num_replicas=None if scaling else spec.replicas,
        autoscaling_config=autoscaling_config(scaling) if scaling else None,
        max_ongoing_requests=spec.max_ongoing_requests,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=LAST_REQUESTS_S,
        # A line for each call would be a tenth of a replica's work.
        logging_config={"enable_access_log": False},
        # One actor has all GPUs of its replica, so they are in one machine and visible to it,
        # and vLLM cuts the model over them with processes of its own. In a placement group it
        # would take its Ray executor, which wants one bundle for each GPU.
        ray_actor_options={
            "num_cpus": spec.cpus_per_replica,
            "num_gpus": spec.gpus_per_replica,
        },
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER,  # type: ignore[arg-type]
            request_router_kwargs={"num_fallback_replicas": 0},
        ),
    )(replica)


def _reason(error: Exception) -> str:
    """The one line of a Serve failure that names its cause."""
    cause = first_cause(error)
    # Serve's own errors have their words here; str() gives but what they are about.
    said = str(getattr(cause, "message", cause))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return (named or lines or [type(cause).__name__])[-1]
