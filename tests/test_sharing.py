"""Real Ray: runs on one cluster use the same models, which leave with the last one."""

import asyncio
import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cluster import recipe

from actors.client import RemotePolicy
from actors.lines import answers
from actors.spec import ModelSpec
from cluster.deploy import Deployed, deployed
from cluster.fanout import replica_at
from cluster.repository import REPOSITORY
from jobs.results import Run, load_run
from search.protocols import Expansion, PolicyPath, Sampling

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(300),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

SILENCE_S = 12.0
# Long enough that the runs overlap, however slowly the second one starts.
SLOW = {"iteration_s": 0.02, "mean_steps": 6, "step_tokens": 40.0}
PATIENCE, LOOK_S = 240, 0.25


@pytest.fixture(scope="module")
def cluster(no_ray_token: None) -> Iterator[str]:
    """A cluster whose keeper takes runs for gone that are silent for some seconds."""
    import ray
    from ray.cluster_utils import Cluster

    from cluster.connect import connected
    from cluster.sharing import keeper

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    with connected(nodes.address):
        ray.get(keeper(SILENCE_S).renew.remote("nothing", "nobody"))
    yield nodes.address
    nodes.shutdown()


def start(folder: Path, name: str, address: str, problems: int = 4) -> "subprocess.Popen[str]":
    """A driver in a process of its own, which writes its run below `folder/name`."""
    document: dict[str, Any] = recipe(folder / name, name=name, work={"solutions_per_unit": 8})
    document["data"] |= {"size": problems, "seed": len(name)}
    document["searches"] = [{"strategy": "best_of_n", "n": 16}]
    document["policies"][0] |= {"max_batch": 16}
    document["policies"][0]["options"] |= SLOW
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "jobs", "run", str(file), "--address", address]
    log = (folder / f"{name}.log").open("w")
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, text=True)


def result(folder: Path, name: str) -> Run:
    [found] = (folder / name).iterdir()
    return load_run(found)


def applications(address: str) -> set[str]:
    from ray import serve

    from cluster.connect import connected

    with connected(address):
        return set(serve.status().applications)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Looks for as long as a slow machine may need."""
    look = threading.Event()
    for _ in range(int(PATIENCE / LOOK_S)):
        if is_so():
            return
        look.wait(LOOK_S)
    raise TimeoutError("it did not come about")


def test_runs_at_once_share_their_models(cluster: str, tmp_path: Path) -> None:
    first, second = (start(tmp_path, name, cluster) for name in ("first", "second"))
    assert [first.wait(), second.wait()] == [0, 0], (tmp_path / "second.log").read_text()
    runs = [result(tmp_path, name) for name in ("first", "second")]
    one, two = (set(run.units["policy_replica"].to_pylist()) for run in runs)
    assert one == two != {""}
    assert all(set(run.units["status"].to_pylist()) == {"done"} for run in runs)
    assert applications(cluster) == set()


def test_models_of_a_killed_run_leave_too(cluster: str, tmp_path: Path) -> None:
    killed = start(tmp_path, "killed", cluster, problems=100)
    wait_until(lambda: bool(list((tmp_path / "killed").glob("*/commits/*"))))
    killed.kill()
    killed.wait()
    assert len(applications(cluster)) == 2
    wait_until(lambda: applications(cluster) == set())


async def answering(model: Deployed) -> set[str]:
    """Those of the model's keys at which a replica takes calls now."""
    return {key for key in model.keys if await answers(key)}


async def replaced() -> tuple[set[str], set[str]]:
    """The keys of replicas before one of them was killed, and when there are two again."""
    import ray

    spec = ModelSpec("two", "fake", "fake", "float64", replicas=2, cpus_per_replica=0.1)
    async with deployed("policy", spec) as starting:
        model = await starting
        assert model is not None
        before = await answering(model)
        replicas = [
            each["name"]
            for each in ray.util.list_named_actors(all_namespaces=True)
            if each["name"].startswith("SERVE_REPLICA::policy#")
        ]
        ray.kill(ray.get_actor(min(replicas), namespace="serve"))
        for _ in range(int(PATIENCE / LOOK_S)):
            await asyncio.sleep(LOOK_S)
            now = await answering(model)
            if now != before and len(now) == 2:
                break
        return before, now


def test_the_successor_of_a_lost_replica_gets_a_key(cluster: str) -> None:
    from cluster.connect import connected

    with connected(cluster):
        before, now = asyncio.run(replaced())
    assert len(before) == len(now) == 2
    assert len(before & now) == 1


async def answered_while_leaving() -> Expansion:
    """A step of about two seconds, whose replica is taken away after a quarter of that."""
    spec = ModelSpec("slow", "fake", "fake", "float64", cpus_per_replica=0.1)
    async with deployed("policy", dataclasses.replace(spec, options={"delay_s": 2.0})) as starting:
        model = await starting
        assert model is not None
        policy, path = RemotePolicy(replica_at(model.keys[0])), PolicyPath("1 + 1 =", b"")
        call = asyncio.create_task(policy.expand(path, 1, Sampling(), 64, seed=1))
        await asyncio.sleep(0.5)
        assert not call.done()
    return await call


def test_a_replica_that_is_taken_away_finishes_what_it_is_writing(
    cluster: str, caplog: pytest.LogCaptureFixture
) -> None:
    from cluster.connect import connected

    with connected(cluster):
        expansion = asyncio.run(answered_while_leaving())
    assert len(expansion.completions) == 1
    assert not [each for each in caplog.messages if "was lost" in each]
