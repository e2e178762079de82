"""Real Ray: what a run tells stands on the machine's metrics endpoint, all of it, by its tags."""

import logging
import re
import urllib.request
from collections.abc import Iterator
from typing import TypeAlias

import pytest
import stamina
from dashboard import queried
from rich.console import Console

from actors.metrics import REPLICA_METRICS
from cluster.connect import SERVE_SETTINGS
from cluster.metrics import RUN_METRICS
from cluster.repository import REPOSITORY
from jobs.driver import RunOutcome, run_recipe
from jobs.recipe import parse_recipe

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

# (name, labels) and the value.
Samples: TypeAlias = "dict[tuple[str, frozenset[tuple[str, str]]], float]"
_SAMPLE = re.compile(r"^(ray_branchwise_\w+)\{(.*)\} (\S+)$", re.M)
DEPLOYMENTS = ("small", "large", "prm")


@pytest.fixture(scope="module")
def endpoint(no_ray_token: None) -> Iterator[str]:
    """The address of the metrics of a machine that reports them every half second."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SERVE_SETTINGS.items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), **SERVE_SETTINGS}},
            _system_config={"metrics_report_interval_ms": 500},
        )
        [node] = ray.nodes()
        yield f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
        ray.shutdown()


@pytest.fixture(scope="module")
def outcome(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    """A run of two policies that takes as long as a small engine would."""
    fake = {"model": "fake", "engine": "fake"}
    timed = {"p": 0.8, "iteration_s": 0.01}
    document = {
        "name": "test",
        "seed": 3,
        "data": {"source": "reasoning_gym:chain_sum", "size": 2, "seed": 11},
        "policies": [{**fake, "name": name, "options": timed} for name in ("small", "large")],
        "prm": {**fake, "family": "qwen2.5-math-prm", "options": {"iteration_s": 0.01}},
        "searches": [{"strategy": "dvts", "n": 16, "branching": 4}],
        "limits": {"max_steps": 8, "max_step_tokens": 60, "max_solution_tokens": 400},
        "work": {"solutions_per_unit": 8},
        "runs_folder": str(tmp_path_factory.mktemp("runs")),
    }
    return run_recipe(parse_recipe(document), None, Console(quiet=True))


def scraped(endpoint: str) -> Samples:
    with urllib.request.urlopen(endpoint, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels))): float(value)
        for name, labels, value in _SAMPLE.findall(text)
    }


@pytest.fixture(scope="module")
def samples(endpoint: str, outcome: RunOutcome) -> Samples:
    """What the endpoint holds when the last of it has come."""
    for attempt in stamina.retry_context(on=AssertionError, attempts=60, wait_max=1.0):
        with attempt:
            found = scraped(endpoint)
            assert queried() <= {name for name, _ in found}
            assert counted(found, "ray_branchwise_answers_graded_total") == 64
    return found


def counted(samples: Samples, metric: str, **labels: str) -> float:
    wanted = labels.items()
    return sum(value for (name, has), value in samples.items() if name == metric and wanted <= has)


def test_the_endpoint_holds_every_metric(samples: Samples) -> None:
    names = {name for name, _ in samples}
    assert names == {declared.exported for declared in (*RUN_METRICS, *REPLICA_METRICS)}
