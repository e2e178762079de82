"""Predictions: small cases by hand, what must not depend on scaling, and the words for it."""

import dataclasses
import gc
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_recipe import fake_recipe
from test_results import synthetic_run

from cluster.admission import Admission
from jobs.forecast import forecast, print_forecast, question
from jobs.prediction import (
    DRIVER,
    POLICY,
    PRM,
    TAIL,
    TRANSPORT,
    Job,
    Prediction,
    Split,
    predict,
    tasks_at_once,
)
from jobs.recipe import parse_recipe
from jobs.simulation import Fleet, simulate
from jobs.step_statistics import assumed_steps, end_shares, measured_steps
from search.config import Compat, Limits, SearchConfig
from search.errors import RecipeError
from search.partition import partition
from search.problem import Problem
from search.rewards import Reduction
from search.simulated import EngineTiming
from search.step_model import StepModel, evenly_spread_ends

pytestmark = pytest.mark.unit

# Every step has 10 tokens and every solution 3 steps, so times can be written out.
STEADY = StepModel(step_tokens=10, step_cv=0.0, end_shares=(0.0, 0.0))
VARIED = StepModel(step_tokens=20, step_cv=0.6, end_shares=evenly_spread_ends(4, 1))
POLICY_TIME = EngineTiming(iteration_s=0.1, sequence_s=0.01, max_batch=16)
PRM_TIME = EngineTiming(iteration_s=0.2, max_batch=16)
ROOMY = Admission(8, 1, speculation=False)


def config_of(strategy: str = "best_of_n", n: int = 1, branching: int = 1) -> SearchConfig:
    return SearchConfig(strategy, n, branching, 1, Reduction.LAST, 1, Limits())


def job_of(**changes: Any) -> Job:
    given: dict[str, Any] = {
        "name": "p",
        "configs": [config_of("dvts", 16, 4)],
        "problems": 24,
        "solutions_per_unit": 8,
        "steps": VARIED,
        "policy": POLICY_TIME,
        "policy_batch": 16,
        "prm": EngineTiming(iteration_s=0.01, max_batch=64),
        "prm_gpus": 1.0,
    }
    return Job(**given | changes)


VARIANTS = [
    config_of("rebase", 12),
    replace(config_of("beam", 12, 4), keep=3, lookahead=1),
    replace(config_of("dvts", 12, 4), score_every=2),
    replace(config_of("beam", 12, 4), keep=3, compat=Compat.SEARCH_AND_LEARN),
    replace(config_of("beam", 12, 4), keep=3, compat=Compat.COMPUTE_OPTIMAL_TTS),
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda each: f"{each.strategy} {each.variant}")
def test_every_rule_can_be_simulated(config: SearchConfig) -> None:
    fleet = Fleet(policy=POLICY_TIME, policies=1, admission=ROOMY, prm=PRM_TIME)
    done = simulate(partition(Problem("p", "", ""), config, 64), fleet, VARIED)
    assert done.solutions == 12
    assert done.prm_tokens > 0
    # Lookahead is written too, though it is no generation.
    written = done.end.policy_tokens / (done.generations * VARIED.step_tokens)
    assert (written > 1.5) == (config.lookahead > 0)
    assert done == simulate(partition(Problem("p", "", ""), config, 64), fleet, VARIED)


def test_one_solution_takes_its_steps_scores_and_calls() -> None:
    fleet = Fleet(
        policy=POLICY_TIME,
        policies=1,
        admission=ROOMY,
        prm=PRM_TIME,
        call_s=0.05,
    )
    units = partition(Problem("p", "", ""), config_of(), 8)
    done = simulate(units, fleet, STEADY)
    # Three steps in one call, then their three scores, one after the other, in another.
    assert done.makespan_s == pytest.approx(3 * (10 * 0.11 + 0.2) + 2 * 0.05)
    assert (done.generations, done.end.policy_tokens, done.solutions) == (3, 30, 1)
    assert done.end.policy_busy_s == pytest.approx(3 * 10 * 0.11)
    assert done.waited.prm_s == pytest.approx(3 * 0.2)


def test_a_call_that_is_given_up_on_its_way_never_begins() -> None:
    """Speculated steps are given up while slow calls take them to the replica."""
    config = replace(config_of("beam", 32, 4), keep=8)
    admission = Admission(64, 32)
    fleet = Fleet(policy=POLICY_TIME, policies=1, admission=admission, prm=PRM_TIME, call_s=1.0)
    simulate(partition(Problem("p", "", ""), config, 64), fleet, VARIED)
    # Python would warn of a coroutine that was made and never awaited, and warnings are errors.
    gc.collect()


def test_two_solutions_share_a_replica_or_have_one_each() -> None:
    def took(replicas: int) -> float:
        fleet = Fleet(
            policy=POLICY_TIME,
            policies=replicas,
            admission=ROOMY,
            prms=2,
            call_s=0.0,
        )
        units = partition(Problem("p", "", ""), config_of("majority", 2), 1)
        return simulate(units, fleet, STEADY).makespan_s

    assert took(1) == pytest.approx(30 * 0.12)
    assert took(2) == pytest.approx(30 * 0.11)


def test_admission_counts_solutions() -> None:
    fleet = Fleet(policy=POLICY_TIME, policies=1, admission=Admission(8, 1, tasks=2), call_s=0.0)
    units = list(partition(Problem("p", "", ""), config_of("majority", 4), 1))
    assert [unit.solutions for unit in units] == [1, 1, 1, 1]
    assert simulate(units, fleet, STEADY).makespan_s == pytest.approx(2 * 30 * 0.12)


def test_a_unit_reads_its_prompt_once() -> None:
    model = dataclasses.replace(STEADY, prompt_tokens=100)
    slow = dataclasses.replace(POLICY_TIME, prompt_token_s=0.01)
    fleet = Fleet(policy=slow, policies=1, admission=ROOMY, call_s=0.0)
    units = partition(Problem("p", "", ""), config_of("majority", 2), 2)
    assert simulate(units, fleet, model).makespan_s == pytest.approx(100 * 0.01 + 30 * 0.12)


def test_steps_are_as_many_as_asked_for() -> None:
    assert STEADY.steps == 3
    assert StepModel(step_tokens=1, step_cv=0, end_shares=evenly_spread_ends(6, 2)).steps == (
        pytest.approx(6)
    )
    assert end_shares([1, 1, 2], ["delimiter", "eos", "boxed"]) == (0.5, 1.0)


def test_more_replicas_are_never_slower() -> None:
    times = [predict(job_of(), Split(count, count)).makespan_s for count in (1, 2, 4, 8)]
    assert all(more <= 1.02 * fewer for fewer, more in itertools.pairwise(times))


def test_a_sample_predicts_what_the_whole_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    job, split = job_of(problems=256), Split(6, 3)
    with monkeypatch.context() as patched:
        patched.setattr("jobs.prediction.WAVES", 1000)
        whole = predict(job, split)
    monkeypatch.setattr("jobs.prediction.SAMPLED_STEPS", 2400)
    part = predict(job, split)
    assert whole.simulated.startswith("6 + 3 replicas, 4,096 solutions (100%")
    assert part.simulated.startswith("2 + 1 replicas, 384 solutions (28%")
    assert part.makespan_s == pytest.approx(whole.makespan_s, rel=0.1)
    assert part.policy_tokens == pytest.approx(whole.policy_tokens, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "split", "bottleneck"),
    [
        ({"problems": 64}, Split(1, 1), POLICY),
        ({"prm": EngineTiming(iteration_s=2.0, max_batch=1)}, Split(4, 1), PRM),
        ({"problems": 1}, Split(8, 8), TAIL),
        ({"problems": 1, "call_s": 30.0}, Split(1, 1), TRANSPORT),
        (
            {"policy": EngineTiming(iteration_s=1e-6, max_batch=64), "call_s": 0.0},
            Split(1, 1),
            DRIVER,
        ),
    ],
)
def test_the_bottleneck_has_a_name(changes: dict, split: Split, bottleneck: str) -> None:
    if bottleneck is DRIVER:
        changes = changes | {"prm": None, "configs": [config_of("majority", 16)]}
    assert predict(job_of(**changes), split).bottleneck == bottleneck


def test_cost_is_gpus_times_hours_times_price() -> None:
    found = Prediction(
        split=Split(3, 1),
        gpus=4,
        makespan_s=1800,
        policy_busy=1,
        policy_filled=1,
        prm_busy=0,
        bottleneck=POLICY,
        policy_tokens=0,
        simulated="",
    )
    assert (found.gpu_hours, found.cost_usd(3.0)) == (2.0, 6.0)


TIMED = {"iteration_s": 0.05, "sequence_s": 0.001}


def timed_recipe(**changes: Any) -> Any:
    policy = {"model": "fake", "engine": "fake", "timing": TIMED}
    prm = {"model": "fake", "engine": "fake", "family": "qwen2.5-math-prm", "timing": TIMED}
    return parse_recipe(fake_recipe(policies=[policy], prm=prm, **changes))


def test_splits_come_quickest_first_and_use_no_more_gpus() -> None:
    found = forecast(timed_recipe(), question(4, "h100", price_usd=2.0))
    times = [run.makespan_s for run in found.runs]
    assert times == sorted(times)
    assert all(run.split.policies + run.split.prms <= 4 for run in found.runs)
    cost = found.best.cost_usd(4, 2.0)
    assert cost == pytest.approx(4 * times[0] / 3600 * 2)


@pytest.mark.parametrize(
    ("changes", "policies", "tasks"),
    [
        ({}, 1, 4),  # four batches of 16; two units of 8 fill a task
        ({}, 2, 16),  # a short run for two: tasks of one unit, of which four batches hold 16
        ({"problems": 1}, 1, 2),  # two units in all
        ({"configs": [config_of("beam", 512, 4)]}, 1, 2),  # one fills the room, two are started
        ({"configs": [config_of("beam", 48, 4)]}, 4, 5),  # a sixth does not fit into 256
        ({"problems": 1, "configs": [config_of("beam", 512, 4)]}, 1, 1),
        ({"units_in_flight": 3}, 1, 3),
    ],
)
def test_tasks_at_once_are_those_that_are_admitted(
    changes: dict[str, Any], policies: int, tasks: int
) -> None:
    assert tasks_at_once(job_of(**changes), policies) == tasks


def test_a_forecast_says_how_many_tasks_want_cores() -> None:
    recipe = timed_recipe(work={"solutions_per_unit": 4, "units_in_flight": 2})
    found = forecast(recipe, question(4, "h100"))
    console = Console(force_terminal=False)
    with console.capture() as captured:
        print_forecast(found, console)
    lines = [line.split(maxsplit=3) for line in captured.get().splitlines()]
    [said] = [rest.strip() for *label, rest in lines if label == ["tasks", "at", "once"]]
    assert said == "2 (each wants a quarter of a CPU core)"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"gpus": 1, "gpu": "h100"}, "--gpus 1 is too few"),
        ({"gpus": 4, "gpu": None}, "--gpus needs --gpu-type"),
        ({"gpus": 0, "gpu": "h100"}, "--gpus must be at least 1, not 0"),
        ({"gpus": 4, "gpu": "h100", "steps": 0}, "--steps must be at least 1"),
        ({"gpus": 4, "gpu": "h100", "price_usd": -1}, "--gpu-price must be 0 or more"),
        (
            {"gpus": 4, "gpu": "h100", "from_run": Path("runs/x"), "steps": 3},
            "--from-run measures steps",
        ),
    ],
)
def test_one_line_for_what_cannot_be_predicted(asked: dict, line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        forecast(timed_recipe(), question(**asked))


def test_steps_follow_from_limits() -> None:
    limits = {"max_steps": 4, "max_step_tokens": 60, "max_solution_tokens": 400}
    model = assumed_steps(timed_recipe(limits=limits))
    assert (model.step_tokens, model.steps) == (30, pytest.approx(3))
    assert assumed_steps(timed_recipe(), step_tokens=7, steps=5).steps == pytest.approx(5)


def test_a_past_run_says_what_its_steps_were(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "runs")
    folder = next((tmp_path / "runs").iterdir())
    model = measured_steps(folder, "nobody's name")
    del run
    assert model.step_tokens >= 1
    assert all(0 <= share <= 1 for share in model.end_shares)
    assert model.end_shares[-1] == 1.0
