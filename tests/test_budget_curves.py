"""Curves against cost: prices by hand, frontiers and matches against brute force."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_report import LADDER, PARAMETERS, PRM_PARAMETERS, write_run

from jobs.budget_curves import Budgets, Priced, budgets_of, frontier
from jobs.budgets import Measure
from jobs.curves import Point
from jobs.reported_run import Choice, ReportedRun, correct_by_problem, read_run
from jobs.small_against_large import Match, matches
from search.rewards import Reduction
from search.schemas import UNITS
from search.votes import Vote

pytestmark = pytest.mark.unit

CHOICE = Choice(Reduction.LAST, Vote.WEIGHTED)
POINT = Point("tiny", "dvts", 4, 4, 1, "", 4, "last", "weighted", 0.5, 0.4, 0.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo", LADDER)


@pytest.fixture(scope="module")
def run(folder: Path) -> ReportedRun:
    return read_run(folder)


@pytest.fixture(scope="module")
def budgets(run: ReportedRun) -> Budgets:
    return budgets_of(run, CHOICE)


def find(budgets: Budgets, policy: str, rule: str, n: int) -> Priced:
    [found] = [p for p in budgets.lines if (p.point.policy, p.rule, p.point.n) == (policy, rule, n)]
    return found


def test_a_price_is_the_mean_over_problems(run: ReportedRun, budgets: Budgets) -> None:
    rows = run.units.filter(pc.equal(run.units["status"], "done")).to_pylist()
    mine = [row for row in rows if row["policy"] == "tiny"]
    prompts: dict[str, int] = {}
    for row in mine:
        held = prompts.get(row["problem_id"], 0)
        prompts[row["problem_id"]] = max(held, row["computed_prefix_policy_tokens"])
    tokens, flops, narrow = [], [], []
    for row in mine:
        if row["strategy"] == "dvts":
            prompt = prompts[row["problem_id"]]
            policy = row["generated_policy_tokens"] / 4 + prompt
            prm = row["minimal_prm_tokens"] / 4 + prompt
            tokens.append(policy + prm)
            flops.append(2.0 * (PARAMETERS["tiny"] * policy + PRM_PARAMETERS * prm))
            narrow.append(2.0 * PARAMETERS["tiny"] * row["generated_policy_tokens"] / 4)
    found = find(budgets, "tiny", "dvts", 4)
    assert len(tokens) == found.problems == 20
    assert found.tokens == pytest.approx(np.mean(tokens))
    assert found.flops == pytest.approx(np.mean(flops))
    assert found.paper_flops == pytest.approx(np.mean(narrow))
    as_run = [row["flops"] / 4 for row in mine if row["strategy"] == "dvts"]
    assert found.flops_as_run == pytest.approx(np.mean(as_run))


def test_one_sample_pays_for_no_prm(budgets: Budgets) -> None:
    assert [each.point.policy for each in budgets.singles] == list(LADDER)
    for each in budgets.singles:
        assert (each.point.n, each.rule, each.as_run) == (1, "one sample", None)
        size = PARAMETERS[each.point.policy]
        assert each.flops == pytest.approx(2.0 * size * each.tokens)


def test_a_majority_is_read_off_best_of_n_where_none_was_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"tiny": 0.5}, [("best_of_n", 8, 1)])
    lines = budgets_of(read_run(folder), CHOICE).lines
    votes = [each for each in lines if each.rule == "majority"]
    assert [each.point.n for each in votes] == [1, 2, 4, 8]
    scored = [each for each in lines if each.rule == "best_of_n"]
    for vote, best in zip(votes, scored, strict=True):
        assert vote.point.vote == "majority"
        assert vote.tokens < best.tokens
        assert vote.as_run is None


def test_a_majority_that_was_run_is_not_made_up(budgets: Budgets) -> None:
    votes = [each for each in budgets.lines if each.rule == "majority"]
    assert {each.point.strategy for each in votes} == {"majority"}
    assert all(each.as_run is not None for each in votes)


def priced(cost: float, accuracy: float) -> Priced:
    point = replace(POINT, expected_correct=accuracy)
    return Priced(point, "dvts", 1, np.array([1.0, cost, 2 * cost, cost]), None)


def test_the_frontier_is_what_nothing_as_cheap_reaches() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        pairs = rng.integers(0, 8, size=(12, 2)).tolist()
        points = [priced(cost, accuracy / 8) for cost, accuracy in pairs]
        expected = {
            (cost, accuracy)
            for cost, accuracy in pairs
            if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in pairs)
        }
        for measure in (Measure.TOKENS, Measure.FLOPS):
            found = frontier(points, measure)
            shown = [(int(each.tokens), int(8 * each.point.expected_correct)) for each in found]
            assert shown == sorted(expected)


def test_engines_that_count_no_flops_have_no_such_curve(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "fake"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    units = pq.read_table(copy / "units.parquet").to_pylist()
    free = [row | {"flops": 0.0 if row["flops"] is not None else None} for row in units]
    pq.write_table(UNITS.empty_table().from_pylist(free, UNITS), copy / "units.parquet")
    budgets = budgets_of(read_run(copy), CHOICE)
    assert not budgets.counts_flops
    assert budgets.measures == [Measure.TOKENS]
    assert find(budgets, "tiny", "dvts", 16).tokens > 0


def gaps_by_n(run: ReportedRun, budgets: Budgets, match: Match) -> dict[int, tuple[float, float]]:
    """Of the match's search at each N: cost, and how far it is ahead on problems that both have."""
    theirs, found = correct_by_problem(run.answers, match.large.point), {}
    for each in budgets.lines:
        if (each.point.policy, each.rule) == (match.small.point.policy, match.small.rule):
            ours = correct_by_problem(run.answers, each.point)
            gaps = [ours[name] - theirs[name] for name in ours.keys() & theirs.keys()]
            found[each.point.n] = each.flops, float(np.mean(gaps))
    return found


def test_a_match_is_the_cheapest_point_that_is_not_below(
    run: ReportedRun, budgets: Budgets
) -> None:
    found = matches(run, budgets)
    pairs = {(m.small.point.policy, m.large.point.policy) for m in found}
    assert pairs == {("tiny", "middle"), ("tiny", "large"), ("middle", "large")}
    assert any(match.keeps_up for match in found)
    for match in found:
        small, gaps = match.small.point, gaps_by_n(run, budgets, match)
        cost, ahead = gaps[small.n]
        assert match.comparison.difference == pytest.approx(ahead)
        assert match.keeps_up == any(gap >= -1e-12 for _, gap in gaps.values())
        if match.keeps_up:
            assert ahead >= -1e-12
            assert all(gap < 0 for price, gap in gaps.values() if price < cost)
        sizes = PARAMETERS[match.large.point.policy] / PARAMETERS[small.policy]
        assert match.parameter_ratio == pytest.approx(sizes)
        assert match.flops_ratio == pytest.approx(match.small.flops / match.large.flops)
        narrow = match.small.paper_flops / match.large.paper_flops
        assert match.paper_flops_ratio == pytest.approx(narrow)


def test_a_search_that_never_keeps_up_is_shown_at_its_best(tmp_path: Path) -> None:
    skill = {"tiny": 0.1, "large": 0.95}
    run = read_run(write_run(tmp_path / "run", skill, [("best_of_n", 4, 1)], 8))
    budgets = budgets_of(run, CHOICE)
    found = matches(run, budgets)
    assert {match.small.rule for match in found} == {"best_of_n", "majority"}
    for match in found:
        gaps = [gap for _, gap in gaps_by_n(run, budgets, match).values()]
        assert not match.keeps_up
        assert match.comparison.difference == pytest.approx(max(gaps))
        assert max(gaps) < 0
