"""Policy and PRM replicas on the cluster, through Ray Serve.

Each model is one Serve application named by its role. Calls with the same affinity key reach
the same replica (consistent hashing), so a work unit finds its prefixes in that KV cache.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from actors.spec import ModelFacts, ModelSpec
from cluster.packing import Machine, Unplaced, packed
from cluster.routing import keys_of_replicas
from search.errors import ClusterError

# A replica that is gone is noticed by its callers; one that hangs by three checks in a row that it
# does not answer in time.
HEALTH_CHECK_PERIOD_S, HEALTH_CHECK_TIMEOUT_S = 5.0, 10.0
CORES_OF_A_UNIT = 1.0
# A replica that is taken away has nothing to finish: its searches are over, or lost.
LAST_REQUESTS_S = 0.1
# Models are deployed side by side, each in a thread, but Serve can be started once.
_STARTING = threading.Lock()
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@dataclass(frozen=True, slots=True)
class Deployed:
    """A model that answers: what it says of itself, and an affinity key for each replica."""

    facts: ModelFacts
    keys: tuple[str, ...]


@contextlib.asynccontextmanager
async def deployed(
    role: str, spec: ModelSpec | None
) -> AsyncIterator["asyncio.Task[Deployed | None]"]:
    """Runs the replicas of one model; they leave when the block ends. No spec, no replicas.

    The block begins at once, so that several models load side by side; await what it is given.
    """
    from ray import serve

    started, has_time = asyncio.create_task(_started(role, spec)), True
    try:
        yield started
    except asyncio.CancelledError:
        has_time = False  # whoever stops a run may kill it seconds later
        raise
    finally:
        started.cancel()
        await asyncio.gather(started, return_exceptions=True)
        if spec is not None:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(serve.delete, role, _blocking=has_time)


async def _started(role: str, spec: ModelSpec | None) -> Deployed | None:
    """Waits until all replicas are ready."""
    from ray import serve

    if spec is None:
        return None
    application = deployment(role, spec).bind(spec)
    try:
        await asyncio.to_thread(_start_serve)
        handle = await asyncio.to_thread(serve.run, application, name=role, route_prefix=None)
        facts: ModelFacts = await handle.facts.remote()
        keys = await keys_of_replicas(handle, spec.replicas)
    except (RuntimeError, TimeoutError) as error:
        raise ClusterError(f"the {role} {spec.model!r} did not start: {_reason(error)}") from error
    return Deployed(facts, keys)


def _start_serve() -> None:
    from ray import serve

    with _STARTING:
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
    return serve.deployment(
        name=replica.__name__,
        num_replicas=spec.replicas,
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


def check_capacity(policies: Sequence[ModelSpec], prm: ModelSpec | None) -> None:
    """Refuses before any model loads what Serve would wait for without end.

    Policies run one after the other, so each of them must fit beside the PRM, machine by
    machine, and a core must be left for work units.
    """
    import ray

    offered = ray.cluster_resources()
    _check_sums(offered, policies, prm)
    machines = [_machine(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for policy in policies:
        models = [prm, policy] if prm else [policy]
        found = packed(machines, models)
        if isinstance(found, Unplaced):
            raise ClusterError(_no_room(found, machines))
        if not any(machine.cores >= CORES_OF_A_UNIT for machine in found):
            raise ClusterError(
                "the replicas leave no machine with a core for work units: lower replicas or "
                "cpus_per_replica, or use a larger cluster"
            )


def uses_gpus(policies: Sequence[ModelSpec], prm: ModelSpec | None) -> bool:
    """Whether any model needs one."""
    return any(spec.gpus_per_replica > 0 for spec in [*policies, *([prm] if prm else [])])


def _machine(resources: dict[str, float]) -> Machine:
    return Machine(resources.get("CPU", 0.0), (1.0,) * int(resources.get("GPU", 0.0)))


def _no_room(found: Unplaced, machines: Sequence[Machine]) -> str:
    spec, largest = found.spec, max(len(machine.gpus) for machine in machines)
    each = f"{spec.gpus_per_replica:g} GPUs and {spec.cpus_per_replica:g} CPUs on one machine"
    return (
        f"{found.placed} of {spec.replicas} replicas of {spec.name} find room, for each needs "
        f"{each} and no machine has them left (the largest has {largest} GPUs): lower replicas, "
        "gpus_per_replica or cpus_per_replica, or use larger machines"
    )


def _check_sums(
    offered: dict[str, float], policies: Sequence[ModelSpec], prm: ModelSpec | None
) -> None:
    for resource, needs, left_for_units in (("GPU", _gpus, 0.0), ("CPU", _cpus, CORES_OF_A_UNIT)):
        wanted = max(map(needs, policies)) + (needs(prm) if prm else 0) + left_for_units
        if wanted > offered.get(resource, 0):
            raise ClusterError(
                f"the models and work units need {wanted:g} {resource}s and the cluster has "
                f"{offered.get(resource, 0):g}: lower replicas, gpus_per_replica or "
                "cpus_per_replica, or use a larger cluster"
            )


def _gpus(spec: ModelSpec) -> float:
    return spec.gpus_per_replica * spec.replicas


def _cpus(spec: ModelSpec) -> float:
    return spec.cpus_per_replica * spec.replicas


def _reason(error: Exception) -> str:
    """The one line of a Serve failure that names its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return (named or lines or [type(error).__name__])[-1]
