"""What Prometheus is told: declared, documented and drawn under the same names."""

import asyncio
import json
import re
from dataclasses import fields
from typing import Any

import pytest
from dashboard import DASHBOARD, metrics_in, queried, queries, variables
from test_docs import chapter, table_rows

from actors import load, metrics
from actors.batching import answer_as_finished
from actors.load import EngineLoad, Load
from actors.metrics import REPLICA_METRICS, REPLICA_TAGS, Declared, Exported
from cluster.flight import InFlight
from cluster.metrics import PRM, RUN_METRICS, RUN_TAGS, DeploymentMetrics
from jobs.progress import Tally

pytestmark = pytest.mark.unit

TAGS_OF = {
    **dict.fromkeys(REPLICA_METRICS, REPLICA_TAGS),
    **dict.fromkeys(RUN_METRICS, RUN_TAGS),
}
EXPORTED = {declared.exported: tags for declared, tags in TAGS_OF.items()}


class Recorded:
    """Stands where Ray's metrics are: keeps what each was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: dict[str, list[float]] = {}
        monkeypatch.setattr(metrics, "_of_ray", self._metric)

    def _metric(self, declared: Declared, tags: Any) -> Any:
        told = self.told.setdefault(declared.name, [])

        class Metric:
            inc = staticmethod(told.append)
            set = staticmethod(told.append)

        return Metric


# The dashboard


def test_every_query_names_declared_metrics() -> None:
    assert all(metrics_in(query) for query in queries())
    assert queried() <= EXPORTED.keys()


def test_no_metric_is_left_out_of_the_dashboard() -> None:
    assert EXPORTED.keys() - queried() == set()


def test_names_are_read_out_of_a_query() -> None:
    text = '1 - sum by (run, x) (rate(ray_a_total{run=~"$run"}[5m])) / avg(ray_b{x="y"})'
    assert metrics_in(text) == {"ray_a_total", "ray_b"}


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_selects_by_labels_that_its_metrics_have(query: str) -> None:
    for name, selected in re.findall(r"(\w+)\{([^}]*)\}", query):
        labels = dict(re.findall(r'(\w+)=~"\$(\w+)"', selected))
        assert labels
        assert all(label == variable for label, variable in labels.items())
        assert labels.keys() <= set(EXPORTED[name])
        assert labels.keys() <= variables().keys()


@pytest.mark.parametrize("query", list(queries()))
def test_only_of_a_counter_a_rate_is_taken(query: str) -> None:
    for name, behind in re.findall(r"(ray_\w+)\{[^}]*\}(\[\$__rate_interval\])?", query):
        assert name.endswith("_total") or not behind


def test_panels_stand_in_rows_side_by_side() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Progress", "Throughput", "Search efficiency", "Engines", "Faults"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not taken & cells
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_grafanas_own_types_read_the_dashboard_and_write_it_again() -> None:
    """A key that Grafana does not know would be missing in what comes back."""
    pytest.importorskip("grafana_foundation_sdk")
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    back = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD)))
    assert list(lost(DASHBOARD, back)) == []
    unknown = json.loads(json.dumps(DASHBOARD))
    unknown["panels"][1]["targets"][0]["expression"] = "sum(x)"
    back = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(unknown)))
    assert list(lost(unknown, back)) == [".panels.1.targets.0.expression"]


def lost(before: Any, after: Any, path: str = "") -> Any:
    """The paths of what is in one document and not, or not the same, in another."""
    if isinstance(before, dict):
        for key, value in before.items():
            known = isinstance(after, dict) and key in after
            yield from lost(value, after[key], f"{path}.{key}") if known else [f"{path}.{key}"]
    elif isinstance(before, list):
        same = isinstance(after, list) and len(before) == len(after)
        pairs = enumerate(zip(before, after, strict=True)) if same else ()
        yield from [] if same else [path]
        for place, (one, other) in pairs:
            yield from lost(one, other, f"{path}.{place}")
    elif before != after:
        yield path


# The page


@pytest.mark.parametrize(
    ("heading", "declared", "tags"),
    [
        ("Of a run, from its driver", RUN_METRICS, RUN_TAGS),
        ("Of replicas", REPLICA_METRICS, REPLICA_TAGS),
    ],
)
def test_every_metric_is_documented(
    heading: str, declared: tuple[Declared, ...], tags: tuple[str, ...]
) -> None:
    text = chapter("watching.md", heading)
    said = [f"`{each.exported}`" for each in declared]
    rows = [[name, each.kind, each.meaning] for name, each in zip(said, declared, strict=True)]
    assert table_rows(text[text.index("|") :]) == rows
    assert all(f"`{tag}`" in text for tag in tags)


# What is told


def test_counters_grow_by_what_is_new_and_gauges_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    exported = Exported([Declared("c", "counter", ""), Declared("g", "gauge", "")], {})
    for so_far in (0, 5, 5, 7):
        exported.count("c", so_far)
        exported.set("g", so_far)
    assert recorded.told == {"c": [5, 2], "g": [0, 5, 5, 7]}


def test_a_deployment_tells_its_own_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {declared.name: 3.0 for declared in RUN_METRICS}
    for deployment, has, has_not in (
        (PRM, "prm_minimal_tokens", "units_done"),
        ("small", "units_done", "prm_minimal_tokens"),
    ):
        recorded = Recorded(monkeypatch)
        DeploymentMetrics("run", deployment).tell(counts)
        assert recorded.told[has] == recorded.told["replicas_ready"] == [3.0]
        assert has_not not in recorded.told


def test_every_metric_of_a_run_has_its_count() -> None:
    """What the driver passes on: a tally, what is in flight, and a few numbers of its own."""
    counts = {field.name for kind in (Tally, InFlight) for field in fields(kind)}
    own = {"problems", "units", "commits", "replicas_ready", "replicas_wanted"}
    assert counts | own == {declared.name for declared in RUN_METRICS}


# How busy a replica is


class Turns:
    """Lets a test wait until something was counted or told."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._news = asyncio.Event()

    def append(self, value: float) -> None:
        self.values.append(value)
        self._news.set()

    async def until(self, value: float) -> None:
        while self.values[-1:] != [value]:
            self._news.clear()
            await self._news.wait()


def test_a_replica_tells_its_load_and_then_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "INTERVAL_S", 0.001)
    recorded, turns = Recorded(monkeypatch), Turns()
    recorded.told["replica_batch"] = turns  # type: ignore[assignment]
    seen: list[dict[str, float]] = []

    def last() -> dict[str, float]:
        names = ("requests", "answered", "running", "queued")
        return {name: recorded.told[f"replica_{name}"][-1] for name in names}

    async def serve() -> None:
        may_end = asyncio.Event()
        replica = Load("small", "name", 8, lambda: EngineLoad(5, 2))

        async def answer(item: str) -> str:
            if item == "slow":
                await may_end.wait()
            return item

        async for reply in answer_as_finished(["quick", "slow"], answer, replica.add):
            if reply and not may_end.is_set():
                turns.values.clear()
                await turns.until(8)
                seen.append(last())
                may_end.set()
        turns.values.clear()
        await turns.until(8)
        await asyncio.sleep(0.05)
        seen.append(last())
        turns.values.clear()
        await asyncio.sleep(0.05)
        assert turns.values == []

    asyncio.run(serve())
    assert seen[0] == {"requests": 1, "answered": 1, "running": 5, "queued": 2}
    assert seen[1]["requests"] == seen[1]["running"] == seen[1]["queued"] == 0
    assert sum(recorded.told["replica_answered"]) == 2


def test_requests_that_nobody_waits_for_are_over() -> None:
    counted = Turns()

    async def leave() -> None:
        async def never(item: str) -> str:
            await asyncio.Event().wait()
            return item

        replies = answer_as_finished(["a", "b"], never, counted.append)
        waiting = asyncio.ensure_future(anext(replies))
        await counted.until(2)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(leave())
    assert counted.values == [2, -2]


def test_outside_of_serve_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    replica = Load("small", "", 8)
    replica.add(1)
    replica.add(-1)
    assert recorded.told == {}
