"""Real autoscalers: machines and replicas come while there is work, and leave after it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from growing_cluster import growing_cluster
from test_cluster import recipe, rows_as_bytes, run

from jobs.results import Run
from search.errors import ClusterError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(400),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

WITH_GPU = {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "max_workers": 3}
# A replica alone would need more than a minute for the run.
SLOW = {"iteration_s": 0.02, "mean_steps": 6, "step_tokens": 40.0}
LEAVES_S, LOOK_S = 120, 0.5


@pytest.fixture(scope="module")
def address(no_ray_token: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster with a head, and machines with a GPU when they are needed."""
    folder = tmp_path_factory.mktemp("growing")
    with growing_cluster(folder, 3, {"policies": WITH_GPU}) as where:
        yield where


def growing(folder: Path, **cluster: Any) -> dict[str, Any]:
    """A recipe whose policy is on GPUs that are not there yet."""
    document = recipe(
        folder,
        data={"source": "reasoning_gym:chain_sum", "size": 8, "seed": 11},
        searches=[{"strategy": "best_of_n", "n": 16}],
        work={"solutions_per_unit": 8},
        cluster={"autoscales": True} | cluster,
    )
    scaling = {"min": 1, "max": 3, "target": 8, "upscale_delay_s": 0, "downscale_delay_s": 5}
    [policy] = document["policies"]
    options = policy["options"] | SLOW
    document["policies"] = [
        policy | {"gpus_per_replica": 1, "max_batch": 8, "autoscaling": scaling, "options": options}
    ]
    return document


def machines_with_gpus() -> int:
    import ray

    return sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU"))


def only_the_head_is_left() -> bool:
    """Looks until the machines have left, for as long as that may take."""
    left = threading.Event()
    for _ in range(int(LEAVES_S / LOOK_S)):
        if machines_with_gpus() == 0:
            return True
        left.wait(LOOK_S)
    return False


def test_machines_come_with_the_work_and_leave_after_it(address: str, tmp_path: Path) -> None:
    import ray

    from cluster.connect import connected

    _, loaded = run(growing(tmp_path / "growing"), address)
    assert set(loaded.units["status"].to_pylist()) == {"done"}
    # Both autoscalers have answered: Serve with replicas, Ray with machines for them.
    assert len(set(loaded.units["policy_replica"].to_pylist())) >= 2
    with connected(address):
        assert len([node for node in ray.nodes() if node["Resources"].get("GPU")]) >= 2
        assert only_the_head_is_left()
    assert rows_as_bytes(loaded.solutions) == rows_as_bytes(undisturbed(tmp_path).solutions)


def undisturbed(folder: Path) -> Run:
    """The same run on this machine, at once."""
    document = growing(folder / "here", autoscales=False)
    document["policies"] = [{**recipe(folder)["policies"][0], "options": {"p": 0.8} | NO_TIME}]
    return run(document, None)[1]


NO_TIME = {key: value for key, value in SLOW.items() if key != "iteration_s"}


def test_machines_that_never_come_are_said_to_be_missing(address: str, tmp_path: Path) -> None:
    document = growing(tmp_path, machines_timeout_s=5.0)
    document["policies"][0] |= {"gpus_per_replica": 4}
    with pytest.raises(ClusterError) as caught:
        run(document, address)
    assert "none of 1 replicas was ready within cluster.machines_timeout_s" in str(caught.value)
    assert "\n" not in str(caught.value)
