"""How many replicas answer, by Serve's own account, for those who watch and those who wait."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

# Those of a machine that is about to leave answer until others have taken their place.
ANSWERING = ("RUNNING", "PENDING_MIGRATION")
# By application: those that are ready, and those that are or will be.
Replicas: TypeAlias = "Mapping[str, tuple[int, int]]"


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
