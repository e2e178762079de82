"""`branchwise fit` in a world whose best searches are known, and in one where none is better."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from routed_world import (
    ALIKE,
    PARAMETERS,
    POLICY,
    PRM,
    PRM_PARAMETERS,
    PRM_TOKENS,
    PROMPT_TOKENS,
    World,
    write_world,
)

from jobs.budgets import Budget, Measure
from jobs.curves import answers_table
from jobs.difficulty import Difficulty, Thresholds
from jobs.evidence import Evidence, gather
from jobs.fit_report import fit_report
from jobs.fitting import FitSettings, fit
from jobs.routes import Artifact, LearnedPolicy, LearnedRoute, Validation, hashed
from search.errors import RecipeError
from search.rewards import Reduction
from search.votes import Vote

pytestmark = pytest.mark.unit

SETTINGS = FitSettings(budgets=(Budget(16), Budget(32), Budget(9000, Measure.TOKENS)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "run", World())


@pytest.fixture(scope="module")
def artifact(run: Path) -> Artifact:
    return fit([run], SETTINGS)


@pytest.fixture(scope="module")
def learned(artifact: Artifact) -> LearnedPolicy:
    [policy] = artifact.policies
    return policy


@pytest.fixture(scope="module")
def evidence(run: Path) -> Evidence:
    [policy] = gather([run], 4, [32]).policies
    return policy


def rows(learned: LearnedPolicy, budget: Budget) -> dict[Difficulty, LearnedRoute]:
    return {
        row.difficulty: row
        for row in learned.routes
        if (row.measure, row.budget) == (budget.measure, budget.amount)
    }


def validation(learned: LearnedPolicy, budget: Budget) -> Validation:
    [found] = [
        row
        for row in learned.validation
        if (row.measure, row.budget) == (budget.measure, budget.amount)
    ]
    return found


# What is read of a run


def test_every_search_and_vote_is_a_route(evidence: Evidence) -> None:
    sizes = {
        (strategy, branching): {r.n for r in evidence.routes if r.strategy == strategy}
        for strategy, branching in (("best_of_n", 1), ("dvts", 4), ("beam", 4))
    }
    assert sizes["beam", 4] == {8, 16}
    assert {4, 8, 16, 32, 28} <= sizes["dvts", 4]
    assert {1, 2, 4, 8, 12, 16, 28, 32} <= sizes["best_of_n", 1]
    votes = [(r.vote, r.vote_reduction) for r in evidence.routes if r.n == 16]
    assert votes.count((Vote.MAJORITY, None)) == 3
    assert votes.count((Vote.WEIGHTED, Reduction.MIN)) == 3
    assert len(set(evidence.routes)) == len(evidence.routes)


def test_accuracies_are_those_of_the_curves(run: Path, evidence: Evidence) -> None:
    answers = answers_table(pq.read_table(run / "solutions.parquet"), None, 0).to_pylist()
    curves = {
        (a["strategy"], a["n"], a["reduction"], a["vote"], a["problem_id"]): a["expected_correct"]
        for a in answers
    }
    compared = 0
    for row, route in enumerate(evidence.routes):
        reduction = str(route.vote_reduction or Reduction.LAST)
        for column, name in enumerate(evidence.problem_ids):
            place = (route.strategy, route.n, reduction, str(route.vote), name)
            if place in curves:
                assert evidence.accuracy[row, column] == curves[place]
                compared += 1
    assert compared > 72 * 2 * 9


def test_costs_are_scaled_to_the_size_of_the_search(evidence: Evidence) -> None:
    [dvts] = [
        row
        for row, r in enumerate(evidence.routes)
        if (r.strategy, r.n, r.vote) == ("dvts", 8, Vote.MAJORITY)
    ]
    # A quarter of 32 solutions: 150 tokens each, of which a quarter of one prompt, and the PRM's.
    written, prompt, scored = 8 * 150, PROMPT_TOKENS / 4, 8 * PRM_TOKENS
    flops = 2.0 * (PARAMETERS * (written + prompt) + PRM_PARAMETERS * scored)
    expected = [8, written + prompt + scored, flops, 2.0 * PARAMETERS * written]
    assert evidence.costs[dvts, 0] == pytest.approx(expected)
    assert np.ptp(evidence.costs[dvts], axis=0) == pytest.approx(0.0)


def test_a_probe_is_paid_once(evidence: Evidence) -> None:
    for route, costs, rest in zip(evidence.routes, evidence.costs, evidence.rest, strict=True):
        solutions = route.n - 4 if route.strategy == "best_of_n" and route.n >= 4 else route.n
        assert rest[:, 0] == pytest.approx(solutions)
        assert rest[:, 1] == pytest.approx(costs[:, 1] * solutions / route.n)


def test_probes_are_cut_from_the_samples(run: Path, evidence: Evidence) -> None:
    probes = evidence.probes
    assert len(probes.features) == 72 * 8
    assert probes.by_problem(np.ones(576)) == pytest.approx(1.0)
    table = pq.read_table(run / "solutions.parquet").to_pylist()
    name = evidence.problem_ids[7]
    drawn = [r for r in table if (r["problem_id"], r["strategy"]) == (name, "best_of_n")]
    right = [row["verdict"] == "correct" for row in sorted(drawn, key=lambda r: r["subtree"])]
    second = np.flatnonzero(probes.problem == 7)[1]
    assert probes.rest[second] == pytest.approx((sum(right) - sum(right[4:8])) / 28)
    assert evidence.pass_at_1[7] == pytest.approx(sum(right) / 32)


# What is learned


def test_the_known_best_search_is_found_at_every_difficulty(learned: LearnedPolicy) -> None:
    for budget in SETTINGS.budgets:
        found = {bin_: row.route.strategy for bin_, row in rows(learned, budget).items()}
        assert found == {"easy": "best_of_n", "medium": "dvts", "hard": "beam"}


def test_routes_stay_within_what_the_probe_leaves(learned: LearnedPolicy) -> None:
    for row in learned.routes:
        paid = getattr(learned.probe_cost, str(row.measure))
        assert getattr(row.cost, str(row.measure)) + paid <= row.budget * (1 + 1e-5)
    beam = rows(learned, Budget(16))[Difficulty.HARD]
    assert (beam.route.n, beam.cost.solutions) == (8, 8.0)


def test_routing_lies_between_the_best_single_search_and_known_difficulty(
    learned: LearnedPolicy,
) -> None:
    for budget in SETTINGS.budgets:
        found = validation(learned, budget)
        assert found.routed_minus["best_single"].low is not None
        assert found.routed_minus["best_single"].low > 0.2
        assert found.routed_minus["oracle_difficulty"].low is not None
        assert found.routed_minus["oracle_difficulty"].low <= 0.0
        assert found.arms["oracle_difficulty"].accuracy.mean > 0.95


def test_validated_accuracies_are_those_of_the_world(learned: LearnedPolicy) -> None:
    """With 32 solutions the majority is sure to be right where one is right with 0.9, and wrong
    where a mistake is more common: a single search wins one bin of three, and another by luck."""
    found = validation(learned, Budget(32))
    assert found.arms["best_single"].accuracy.mean == pytest.approx(1 / 3, abs=0.1)
    assert found.arms["routed"].accuracy.mean > 0.85
    assert found.arms["routed"].cost.solutions <= 32
    assert found.arms["liu2025"].accuracy.mean == pytest.approx(1 / 3, abs=0.1)


def test_nothing_is_gained_where_all_searches_are_alike(tmp_path: Path) -> None:
    """Not one point, for intervals do not know that another split would choose other routes."""
    run = write_world(tmp_path / "run", World(chances=ALIKE, seed=5))
    [learned] = fit([run], SETTINGS).policies
    for row in learned.validation:
        gain = row.routed_minus["best_single"]
        assert gain.low is not None
        assert gain.low <= 0.01


def test_a_probe_tells_these_difficulties_apart(learned: LearnedPolicy) -> None:
    predictor = learned.predictor
    assert predictor.share_right > 0.8
    assert predictor.share_right_without == pytest.approx(1 / 3, abs=0.05)
    assert sum(sum(row.values()) for row in predictor.confusion.values()) == pytest.approx(72, 0.01)
    assert predictor.mean_error < 0.15


def test_a_fit_repeats(run: Path, artifact: Artifact) -> None:
    assert fit([run], SETTINGS) == artifact


def test_another_seed_makes_other_folds(run: Path, artifact: Artifact) -> None:
    other = fit([run], FitSettings(seed=1, budgets=SETTINGS.budgets))
    assert other.policies[0].routes == artifact.policies[0].routes
    assert other.policies[0].validation != artifact.policies[0].validation


def test_budgets_follow_from_the_samples_if_none_are_given(run: Path) -> None:
    [learned] = fit([run], FitSettings()).policies
    found = {m: [r.budget for r in learned.validation if r.measure == m] for m in Measure}
    assert found[Measure.SOLUTIONS] == [4, 8, 16, 32]
    assert len(found[Measure.TOKENS]) == len(found[Measure.FLOPS]) == 4
    assert found[Measure.TOKENS][1] >= 8 * (100 + PRM_TOKENS) + PROMPT_TOKENS / 4


def test_what_was_learned_from_is_noted(artifact: Artifact, learned: LearnedPolicy) -> None:
    assert [run.run_id for run in artifact.runs] == ["run"]
    assert hashed("p-easy-0") in artifact.problem_ids
    assert hashed("What is p-easy-0?") in artifact.problem_texts
    assert len(artifact.problem_ids) == len(artifact.problem_texts) == 72
    assert (learned.policy, learned.prm) == (POLICY, PRM)
    assert (learned.parameters, learned.prm_parameters) == (PARAMETERS, PRM_PARAMETERS)
    assert (learned.problems, learned.left_out) == (72, 0)


def test_a_report_says_all_of_it(artifact: Artifact) -> None:
    text = fit_report(artifact)
    for arm in ("routed", "best_single", "oracle_difficulty", "liu2025"):
        assert text.count(f"| {arm} |") == len(artifact.policies[0].validation) - (
            # A beam of 4 was not run, so there is no row of the paper's at a probe's budget.
            2 if arm == "liu2025" else 0
        )
    assert "| measured \\ predicted | easy | medium | hard |" in text
    assert "beam N=8, branching 4" in text
    tables = [line for line in text.splitlines() if line.startswith("| 32 solutions")]
    assert len(tables) == 4 + 3


def add_variant(folder: Path, variant: str, **settings: object) -> None:
    """One more search: the dvts of a run again, as if it had been run with these settings."""
    for name in ("solutions", "units"):
        path = folder / f"{name}.parquet"
        table = pq.read_table(path)
        rows = [row | {"variant": variant} for row in table.to_pylist() if not row["variant"]]
        more = [row for row in rows if row["strategy"] == "dvts"]
        pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(more, table.schema)]), path)
    record = json.loads((folder / "run.json").read_text())
    search = {"strategy": "dvts", "n": [16], "branching": 4} | settings
    record["recipe"]["searches"].append(search)
    (folder / "run.json").write_text(json.dumps(record))


def test_a_route_keeps_candidates_as_its_own_variant_did(tmp_path: Path) -> None:
    world = World(problems=2, searches=(("best_of_n", 8, 1), ("dvts", 16, 4)))
    folder = write_world(tmp_path / "run", world)
    add_variant(folder, "lookahead=2 score_every=3", lookahead=2, score_every=3, reduction="min")
    add_variant(folder, "stop=posterior", stop={"rule": "posterior"}, reduction="mean")
    [evidence] = gather([folder], 4, []).policies
    found = {(r.variant, r.reduction) for r in evidence.routes if r.strategy == "dvts"}
    assert found == {("", Reduction.LAST), ("lookahead=2 score_every=3", Reduction.MIN)}


# Several runs


def test_searches_may_stand_in_several_runs(tmp_path: Path, run: Path) -> None:
    """Halves of the searches over the same problems, drawn apart, still make one evidence."""
    first = write_world(tmp_path / "a", World(searches=(("best_of_n", 32, 1), ("dvts", 32, 4))))
    second = write_world(tmp_path / "b", World(searches=(("beam", 8, 4),), seed=3))
    [evidence] = gather([first, second], 4, []).policies
    assert {route.strategy for route in evidence.routes} == {"best_of_n", "dvts", "beam"}
    assert (len(evidence.problem_ids), evidence.left_out) == (72, 0)


def test_problems_that_a_search_missed_are_left_out(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "run", World())
    path = folder / "units.parquet"
    units = pq.read_table(path).to_pylist()
    units[1] |= {"status": "error", "solutions": 0, "flops": None, "computed_prm_tokens": None}
    pq.write_table(pa.Table.from_pylist(units, pq.read_schema(path)), path)
    [evidence] = gather([folder], 4, []).policies
    assert (len(evidence.problem_ids), evidence.left_out) == (71, 1)
    assert units[1]["problem_id"] not in evidence.problem_ids


@pytest.mark.parametrize(
    ("worlds", "settings", "line"),
    [
        (
            [World(searches=(("dvts", 8, 4),))],
            FitSettings(),
            "policy small: a probe of 4 needs best_of_n with n=8 or more, not 0: "
            "run that too, or take a smaller probe",
        ),
        (
            [World(searches=(("best_of_n", 8, 1),)), World(searches=(("dvts", 8, 4),), prefix="q")],
            FitSettings(),
            "policy small: no problem was searched by all of its searches: "
            "give runs over the same problems",
        ),
        (
            [World(problems=6, searches=(("best_of_n", 8, 1),))],
            FitSettings(),
            "policy small: 18 problems that all searches were run on are too few: "
            "20 or more are needed",
        ),
        (
            [World(searches=(("best_of_n", 8, 1),))],
            FitSettings(budgets=(Budget(3),)),
            "a budget of 3 solutions is too small to probe small: "
            "a probe of 4 samples costs 4 solutions",
        ),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    tmp_path: Path, worlds: list[World], settings: FitSettings, line: str
) -> None:
    runs = [write_world(tmp_path / str(place), world) for place, world in enumerate(worlds)]
    with pytest.raises(RecipeError) as caught:
        fit(runs, settings)
    assert str(caught.value) == line


def test_a_budget_in_what_was_not_counted_is_refused(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "run", World(searches=(("best_of_n", 8, 1),)))
    path = folder / "units.parquet"
    units = [row | {"flops": 0.0} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(units, pq.read_schema(path)), path)
    with pytest.raises(RecipeError, match="policy small: its runs count no flops"):
        fit([folder], FitSettings(budgets=(Budget(1e9, Measure.FLOPS),)))
    [learned] = fit([folder], FitSettings()).policies
    assert {row.measure for row in learned.routes} == {Measure.SOLUTIONS, Measure.TOKENS}
    assert all("liu2025" not in row.arms for row in learned.validation)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"probe": 0}, "a probe of 0 samples tells nothing: take 1 or more"),
        ({"standard_errors": -1.0}, "-1 standard errors: take 0 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, float], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        FitSettings(**changes)  # type: ignore[arg-type]
    assert str(caught.value) == line


def test_thresholds_decide_the_bins(run: Path) -> None:
    """Nothing in this world is right less often than 1 in 1000 or more often than always."""
    strict = FitSettings(thresholds=Thresholds(easy=1.0, hard=0.95), budgets=(Budget(32),))
    [learned] = fit([run], strict).policies
    counted = {row: sum(counts.values()) for row, counts in learned.predictor.confusion.items()}
    assert counted[Difficulty.HARD] > 60
