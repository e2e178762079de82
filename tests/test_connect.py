"""What a connection to Ray leaves in this process, and what workers have from it."""

import os

import pytest
import ray
from ray.exceptions import RaySystemError

from cluster.connect import SERVE_SETTINGS, connected
from cluster.repository import REPOSITORY

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    # Ray leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]


def test_workers_of_a_local_cluster_have_the_environment_of_a_run() -> None:
    before = dict(os.environ)
    with connected(None, packs_replicas=True) as is_shared:
        assert not is_shared
        # Workers cannot import the modules of tests.
        found = ray.get(ray.remote(lambda: dict(os.environ)).remote())
    wanted = SERVE_SETTINGS | {"RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1"}
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["PYTHONPATH"].split(os.pathsep)[0] == str(REPOSITORY)
    here = dict(os.environ)
    assert {name: here.get(name) for name in wanted if name not in SERVE_SETTINGS} == {
        name: before.get(name) for name in wanted if name not in SERVE_SETTINGS
    }


def test_a_call_that_comes_too_late_starts_no_ray_of_its_own() -> None:
    with pytest.raises(RaySystemError):
        ray.put(1)
    assert not ray.is_initialized()
