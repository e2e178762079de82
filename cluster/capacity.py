"""Whether a cluster has room for a run's models: asked before any of them loads.

Invariant: what is refused could never start on the machines that are there.
"""

from collections.abc import Sequence

from actors.spec import ModelSpec
from cluster.packing import Machine, Unplaced, packed
from search.errors import ClusterError

CORES_OF_A_UNIT = 1.0
GROWS = "if the cluster adds machines by itself, say cluster.autoscales: true"


def check_capacity(
    policies: Sequence[ModelSpec], prm: ModelSpec | None, autoscales: bool = False
) -> None:
    """Refuses before any model loads what Serve would wait for without end.

    Policies run one after the other, so each of them must fit beside the PRM, machine by machine,
    and a core must be left for work units. What an autoscaler can add is not known here: where one
    does, `cluster.readiness` waits for it.
    """
    import ray

    if autoscales:
        return
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
        f"gpus_per_replica or cpus_per_replica, or use larger machines; {GROWS}"
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
                f"cpus_per_replica, or use a larger cluster; {GROWS}"
            )


def _gpus(spec: ModelSpec) -> float:
    return spec.gpus_per_replica * spec.replicas


def _cpus(spec: ModelSpec) -> float:
    return spec.cpus_per_replica * spec.replicas
