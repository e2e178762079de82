"""Real Ray: what a run tells stands on the machine's metrics endpoint, all of it, by its tags."""

import logging
import re
import urllib.request
from collections.abc import Iterator
from typing import TypeAlias

import pyarrow.compute as pc
import pytest
import stamina
from dashboard import queried
from rich.console import Console

from actors.metrics import REPLICA_METRICS, REPLICA_TAGS
from cluster.connect import SERVE_SETTINGS
from cluster.metrics import RUN_METRICS, RUN_TAGS
from cluster.repository import REPOSITORY
from jobs.driver import RunOutcome, run_recipe
from jobs.recipe import parse_recipe
from jobs.results import load_run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    # Ray and Serve leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]

# (name, labels) and the value.
Samples: TypeAlias = "dict[tuple[str, frozenset[tuple[str, str]]], float]"
_SAMPLE = re.compile(r"^(ray_branchwise_\w+)\{(.*)\} (\S+)$", re.M)


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


def value(samples: Samples, metric: str, **labels: str) -> float:
    """The sum over the series of a metric that have these labels."""
    wanted = labels.items()
    return sum(each for (name, has), each in samples.items() if name == metric and wanted <= has)


@pytest.fixture(scope="module")
def samples(endpoint: str, outcome: RunOutcome) -> Samples:
    """What the endpoint holds when the last of it has come."""
    graded = load_run(outcome.folder).solutions.num_rows
    for attempt in stamina.retry_context(on=AssertionError, attempts=60, wait_max=1.0):
        with attempt:
            found = scraped(endpoint)
            assert queried() <= {name for name, _ in found}
            assert value(found, "ray_branchwise_answers_graded_total") == graded
    return found


def test_the_endpoint_holds_every_metric(samples: Samples) -> None:
    declared = {each.exported: RUN_TAGS for each in RUN_METRICS}
    declared |= {each.exported: REPLICA_TAGS for each in REPLICA_METRICS}
    assert {name for name, _ in samples} == declared.keys()
    for name, labels in samples:
        assert set(declared[name]) <= dict(labels).keys()
        assert not {"problem", "unit"} & dict(labels).keys()


def test_series_are_told_apart_by_run_and_deployment(samples: Samples, outcome: RunOutcome) -> None:
    found = {dict(labels)["deployment"] for _, labels in samples}
    runs = {dict(labels).get("run", outcome.place.name) for _, labels in samples}
    assert (found, runs) == ({"small", "large", "prm"}, {outcome.place.name})
    replicas = {dict(labels)["replica"] for name, labels in samples if "replica_" in name}
    assert all(replicas)


def test_the_counts_are_those_of_the_tables(samples: Samples, outcome: RunOutcome) -> None:
    units = load_run(outcome.folder).units
    for policy in ("small", "large"):
        mine = units.filter(pc.equal(units["policy"], policy))
        for metric, column in (
            ("solutions", "solutions"),
            ("generated_tokens", "generated_policy_tokens"),
            ("computed_prefix_tokens", "computed_prefix_policy_tokens"),
        ):
            exported = f"ray_branchwise_{metric}_total"
            assert value(samples, exported, deployment=policy) == pc.sum(mine[column]).as_py()
        assert value(samples, "ray_branchwise_units_done_total", deployment=policy) == len(mine)
        assert value(samples, "ray_branchwise_units_in_flight", deployment=policy) == 0
    scored = pc.sum(units["computed_prm_tokens"]).as_py()
    assert value(samples, "ray_branchwise_prm_computed_tokens_total", deployment="prm") == scored
