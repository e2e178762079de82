"""Real Ray with machines that say they have GPUs: replicas are placed, or refused at once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cluster import recipe, run

from actors.spec import ModelSpec
from cluster.capacity import check_capacity
from cluster.connect import connected
from cluster.deploy import deployed
from search.errors import ClusterError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

GPUS_OF_A_MACHINE = 2
READY_S = 120


@pytest.fixture(scope="module")
def gpu_machines(no_ray_token: None) -> Iterator[str]:
    """The address of a cluster with a head and two machines of two GPUs that nobody uses."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    for _ in range(2):
        cluster.add_node(num_cpus=6, num_gpus=GPUS_OF_A_MACHINE)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


def fake(name: str, gpus: float, replicas: int = 1) -> ModelSpec:
    return ModelSpec(name, "fake", "fake", "float64", replicas, gpus_per_replica=gpus)


async def gpus_left(prm: ModelSpec, policy: ModelSpec) -> float:
    """What is free while all replicas of both run."""
    import ray

    async with (
        asyncio.timeout(READY_S),
        deployed("prm", prm) as prms,
        deployed("policy", policy) as policies,
    ):
        await asyncio.gather(prms, policies)
        return float(ray.available_resources().get("GPU", 0.0))


@pytest.mark.parametrize(
    ("prm", "policy", "left"),
    [
        (fake("prm", 0.5, replicas=2), fake("two", 2), 1.0),
        # Only if the PRM's replicas stand on one machine, not spread over both.
        (fake("prm", 1, replicas=2), fake("two", 2), 0.0),
        (fake("prm", 0.25, replicas=4), fake("halves", 0.5, replicas=6), 0.0),
    ],
)
def test_what_passes_the_check_is_placed(
    gpu_machines: str, prm: ModelSpec, policy: ModelSpec, left: float
) -> None:
    with connected(gpu_machines, packs_replicas=True):
        check_capacity([policy], prm)
        assert asyncio.run(gpus_left(prm, policy)) == pytest.approx(left)


def sized(folder: Path, prm: float, policy: float, **changes: Any) -> dict[str, Any]:
    """A recipe of fake models on so many GPUs each."""
    document = recipe(folder, **changes)
    document["prm"] |= {"gpus_per_replica": prm}
    document["policies"][0] |= {"gpus_per_replica": policy}
    return document


def test_a_run_with_a_part_of_a_gpu_and_with_two(gpu_machines: str, tmp_path: Path) -> None:
    outcome, loaded = run(sized(tmp_path, prm=0.5, policy=2), gpu_machines)
    assert outcome.failed_units == 0
    assert loaded.solutions.num_rows


@pytest.mark.parametrize(
    ("prm", "policy", "line"),
    [
        (0, 4, "0 of 1 replicas of fake find room, for each needs 4 GPUs and 1 CPUs on one"),
        (0, 5, "need 5 GPUs and the cluster has 4"),
    ],
)
def test_what_no_machine_can_hold_is_refused(
    gpu_machines: str, tmp_path: Path, prm: float, policy: float, line: str
) -> None:
    with pytest.raises(ClusterError) as caught:
        run(sized(tmp_path, prm, policy), gpu_machines)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prm", "policy"),
    [
        (fake("prm", 0.6, replicas=5), fake("none", 0)),
        (fake("prm", 1, replicas=3), fake("two", 2)),
        (fake("prm", 0), fake("many", 0, replicas=15)),
    ],
)
def test_replicas_that_would_wait_without_end_are_refused(
    gpu_machines: str, prm: ModelSpec, policy: ModelSpec
) -> None:
    with connected(gpu_machines), pytest.raises(ClusterError, match=r"replicas|need"):
        check_capacity([policy], prm)
