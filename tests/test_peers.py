"""The peers' schedules on fake engines: their order of work, and where their rule is ours."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from actors.engines.loading import load_tokenizer
from actors.prm_layout import PRMLayout
from benchmarks.peers import contestants, lock_step, serial_beams
from benchmarks.peers.__main__ import markdown
from benchmarks.peers.contestants import CONTESTANTS
from benchmarks.peers.judged import (
    VOTES,
    Row,
    correctness,
    least_prm_tokens,
    over_raw,
    summarised,
)
from benchmarks.peers.lock_step import LockStepGrowth
from benchmarks.peers.measured import (
    Candidate,
    Found,
    Meter,
    MeteredPolicy,
    MeteredPRM,
    side_by_side,
    steps_of,
)
from benchmarks.peers.setting import load_setting, models
from jobs.grading import Graders
from search.config import Compat, Limits, SearchConfig
from search.growth import Growth
from search.partition import partition, run_unit
from search.problem import Problem
from search.protocols import PRM, Policy, PRMPath
from search.rewards import Reduction
from search.scripted import SeededPolicy, SeededPRM
from search.strategies import keep_count
from search.strategies.search_and_learn import copies, in_pool_order
from search.votes import Vote

pytestmark = pytest.mark.unit

N, BRANCHING = 16, 4
PROBLEMS = [Problem(f"p{place}", f"problem {place}", "42") for place in range(3)]
SEEDS = (1, 2, 3)
# Texts are told apart by their marks, and all solutions have as many steps: where solutions end
# at different depths, beams of different systems differ by their rules.
EVEN, UNEVEN = SeededPolicy(p=0.8, mean_steps=4, spread=0), SeededPolicy(p=0.8, mean_steps=4)
Schedule = Callable[[Sequence[LockStepGrowth]], Awaitable[list[Found]]]


def _config(strategy: str, seed: int) -> SearchConfig:
    keep = keep_count(strategy, N, BRANCHING)
    limits = Limits(max_steps=8, max_step_tokens=200, max_solution_tokens=1000)
    return SearchConfig(strategy, N, BRANCHING, keep, Reduction.LAST, seed, limits)


def _ours(
    strategy: str, seed: int, policy: Policy, problem: Problem, compat: Compat | None = None
) -> list[Growth]:
    async def grow() -> list[Growth]:
        units = partition(problem, replace(_config(strategy, seed), compat=compat), N)
        return [await run_unit(unit, policy, SeededPRM()) for unit in units]

    return asyncio.run(grow())


def _texts(growths: list[Growth]) -> list[str]:
    """All solutions that Branchwise ends with."""
    return [each.tree.text(end.node) for each in growths for end in each.tree.solutions]


def _kept_texts(growths: list[Growth]) -> list[str]:
    """Those of them that its rule chose at their last step."""
    ends = [(each.tree, solution.node) for each in growths for solution in each.tree.solutions]
    return [tree.text(node) for tree, node in ends if tree.kept[node]]


def _theirs(
    schedule: Schedule, strategy: str, seed: int, policy: Policy, prm: PRM | None = None
) -> list[Found]:
    config, judge = _config(strategy, seed), prm or SeededPRM()
    growths = [LockStepGrowth(problem, policy, judge, config) for problem in PROBLEMS]
    return asyncio.run(schedule(growths))


def _found_texts(found: Found) -> list[str]:
    assert not found.error
    return [candidate.text for candidate in found.candidates]


@pytest.mark.parametrize("seed", SEEDS)
def test_lock_step_dvts_ends_with_our_candidates(seed: int) -> None:
    found = _theirs(lock_step.dvts, "dvts", seed, UNEVEN)
    for problem, each in zip(PROBLEMS, found, strict=True):
        ours = _ours("dvts", seed, UNEVEN, problem)
        assert sorted(_found_texts(each)) == sorted(_texts(ours))
        assert len(each.candidates) == N


@pytest.mark.parametrize("seed", SEEDS)
def test_lock_step_beam_ends_with_our_candidates_when_all_end_together(seed: int) -> None:
    found = _theirs(lock_step.beam, "beam", seed, EVEN)
    for problem, each in zip(PROBLEMS, found, strict=True):
        ours = _ours("beam", seed, EVEN, problem)
        assert sorted(_found_texts(each)) == sorted(_texts(ours))


@pytest.mark.parametrize(
    ("schedule", "strategy", "policy"),
    [(serial_beams.beam, "beam", EVEN), (serial_beams.dvts, "dvts", UNEVEN)],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_serial_trees_end_with_what_we_keep(
    schedule: Schedule, strategy: str, policy: Policy, seed: int
) -> None:
    for problem, each in zip(PROBLEMS, _theirs(schedule, strategy, seed, policy), strict=True):
        ours = _ours(strategy, seed, policy, problem)
        assert sorted(_found_texts(each)) == sorted(_kept_texts(ours))
        assert len(each.candidates) == N // BRANCHING


def test_scores_are_those_of_our_search() -> None:
    [first, *_] = _theirs(lock_step.dvts, "dvts", 1, UNEVEN)
    [growth] = _ours("dvts", 1, UNEVEN, PROBLEMS[0])
    nodes = [solution.node for solution in growth.tree.solutions]
    ours = {growth.tree.text(node): growth.score(node) for node in nodes}
    assert {each.text: each.score for each in first.candidates} == ours


def test_beams_that_end_early_leave_the_pool_and_all_places_stay_in_use() -> None:
    """search-and-learn's own rule: N answers, and the pool is filled up by the others."""
    for each in _theirs(lock_step.beam, "beam", 1, UNEVEN):
        assert len(each.candidates) == N
    assert copies([7, 8, 9], 8) == [(7, 3), (8, 3), (9, 2)]
    assert in_pool_order([[1, 2, 3], [4, 5, 6], [7, 8]]) == [1, 4, 7, 2, 5, 8, 3, 6]


@pytest.mark.parametrize(
    ("schedule", "strategy", "compat"),
    [
        (lock_step.beam, "beam", Compat.SEARCH_AND_LEARN),
        (lock_step.dvts, "dvts", Compat.SEARCH_AND_LEARN),
        (serial_beams.beam, "beam", Compat.COMPUTE_OPTIMAL_TTS),
        (serial_beams.dvts, "dvts", Compat.COMPUTE_OPTIMAL_TTS),
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_schedule_ends_with_what_its_rule_gives(
    schedule: Schedule, strategy: str, compat: Compat, seed: int
) -> None:
    """`compat` follows the rules at another time of writing; the outcome is the same."""
    for problem, each in zip(PROBLEMS, _theirs(schedule, strategy, seed, UNEVEN), strict=True):
        ours = _texts(_ours(strategy, seed, UNEVEN, problem, compat))
        assert sorted(_found_texts(each)) == sorted(ours)
        if strategy == "beam":
            assert _found_texts(each) == ours


@dataclass
class Watch:
    """How many calls of either kind are under way, and the most of them."""

    writing: int = 0
    scoring: int = 0
    overlaps: int = 0
    most_writing: int = 0

    def note(self) -> None:
        self.overlaps += bool(self.writing and self.scoring)
        self.most_writing = max(self.most_writing, self.writing)


@dataclass
class WatchedPolicy:
    watch: Watch
    policy: SeededPolicy = field(default_factory=lambda: UNEVEN)

    async def expand(self, *arguments: object) -> object:
        self.watch.writing += 1
        self.watch.note()
        await asyncio.sleep(0)
        found = await self.policy.expand(*arguments)  # type: ignore[arg-type]
        self.watch.writing -= 1
        return found


@dataclass
class WatchedPRM:
    watch: Watch
    prm: SeededPRM = field(default_factory=SeededPRM)

    async def score(self, paths: Sequence[PRMPath]) -> object:
        self.watch.scoring += 1
        self.watch.note()
        await asyncio.sleep(0)
        found = await self.prm.score(paths)
        self.watch.scoring -= 1
        return found


@pytest.mark.parametrize(
    ("schedule", "strategy", "widest"),
    [
        (lock_step.beam, "beam", N // BRANCHING),
        (lock_step.dvts, "dvts", N // BRANCHING * len(PROBLEMS)),
    ],
)
def test_lock_step_never_writes_while_it_scores(
    schedule: Schedule, strategy: str, widest: int
) -> None:
    watch = Watch()
    _theirs(schedule, strategy, 1, WatchedPolicy(watch), WatchedPRM(watch))
    assert watch.overlaps == 0
    assert watch.most_writing == widest


def test_a_serial_tree_has_one_call_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial_beams, "TREES_SIDE_BY_SIDE", 1)
    for schedule, strategy in ((serial_beams.beam, "beam"), (serial_beams.dvts, "dvts")):
        watch = Watch()
        _theirs(schedule, strategy, 1, WatchedPolicy(watch), WatchedPRM(watch))
        assert (watch.overlaps, watch.most_writing) == (0, 1)


def test_serial_trees_run_at_most_twelve_at_once() -> None:
    watch = Watch()
    _theirs(serial_beams.dvts, "dvts", 1, WatchedPolicy(watch), WatchedPRM(watch))
    assert watch.most_writing == min(12, len(PROBLEMS) * N // BRANCHING)


def test_a_failing_problem_is_data() -> None:
    async def search(problem: Problem) -> list[Candidate]:
        if problem.problem_id == "p1":
            raise RuntimeError("no connection")
        return [Candidate("\\boxed{42}", 1.0)]

    found = asyncio.run(side_by_side(PROBLEMS, search))
    assert [each.error for each in found] == ["", "RuntimeError: no connection", ""]
    assert found[1].candidates == ()


def test_votes_on_candidates() -> None:
    async def vote() -> dict[Vote, float]:
        right, wrong = "so \\boxed{42}", "so \\boxed{7}"
        candidates = [Candidate(right, 0.4), Candidate(right, 0.5), Candidate(wrong, 0.8)]
        async with Graders(1, 5.0) as graders:
            empty = await correctness(graders, PROBLEMS[0], [])
            assert set(empty.values()) == {0.0}
            return await correctness(graders, PROBLEMS[0], candidates)

    assert asyncio.run(vote()) == {Vote.WEIGHTED: 1.0, Vote.MAX: 0.0}


def test_the_least_prm_tokens_count_each_prefix_once() -> None:
    spec = models()[1]
    layout = PRMLayout(spec, load_tokenizer(spec))
    first, other = PRMPath("1 + 1", ("1 + 1 = 2",)), PRMPath("1 + 1", ("1 + 1 = 3",))
    both = PRMPath("1 + 1", ("1 + 1 = 2", "2"))
    whole = len(layout.lay_out(both).ids)
    assert least_prm_tokens(layout, [first, both, first]) == whole
    assert whole < least_prm_tokens(layout, [both, other]) < whole + len(layout.lay_out(other).ids)


def test_rows_of_one_search_are_summarised() -> None:
    def row(seconds: float, right: float) -> Row:
        correct = {"weighted": (right, 1.0), "max": (0.0, 0.0)}
        times = (seconds, seconds)
        return Row("raw", "best_of_n", 4, 0, seconds, 100, 60, 20, times, (4, 4), correct, ())

    summary = summarised([row(1.0, 1.0), row(2.0, 0.0), row(4.0, 0.5)])
    assert summary.tokens_per_s == (50.0, 25.0, 100.0)
    assert summary.problems_per_min == (60.0, 30.0, 120.0)
    assert summary.prm_ratio == pytest.approx(3.0)
    assert summary.accuracy["weighted"][0] == pytest.approx(0.75)
    assert summary.accuracy["max"] == (0.0, 0.0, 0.0)


def test_rates_are_compared_with_raw_of_the_same_repetition() -> None:
    def row(contestant: str, repetition: int, tokens: int, n: int = 16) -> Row:
        none = {str(vote): (1.0,) for vote in VOTES}
        return Row(
            contestant, "best_of_n", n, repetition, 2.0, tokens, 1, 1, (1.0,), (1,), none, ()
        )

    rows = [row("raw", place, tokens) for place, tokens in enumerate([100, 200, 400])]
    rows += [row("branchwise", place, tokens) for place, tokens in enumerate([50, 200, 100])]
    ratios = over_raw([*rows, row("branchwise", 0, 7, n=64)])
    assert ratios["branchwise", "best_of_n", 16] == (0.5, 0.25, 1.0)
    assert ratios["raw", "best_of_n", 16] == (1.0, 1.0, 1.0)
    assert ("branchwise", "best_of_n", 64) not in ratios
    table = markdown(rows).splitlines()
    assert [line.split("|")[3].strip() for line in table[2:]] == ["raw", "branchwise"]


def test_what_is_not_installed_is_skipped_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants.importlib.util, "find_spec", lambda _: None)
    for contestant in CONTESTANTS:
        line = contestant.missing()
        assert line.startswith(f"{contestant.name} is skipped: pip install")
        assert "\n" not in line


def test_named_requirement_is_there() -> None:
    folder = Path(contestants.__file__).parent
    assert (folder / "requirements.txt").read_text() == "its_hub[lm]==1.2.0\n"


def test_every_search_has_a_configuration() -> None:
    setting = load_setting(toy=True)
    assert len(setting.problems) == 4
    for contestant in CONTESTANTS:
        for search in contestant.searches:
            config = setting.config(search, 16, 1)
            assert config.keep == (16 if search == "best_of_n" else 1 if search == "dvts" else 4)


def test_steps_are_cut_as_the_prm_sees_them() -> None:
    assert steps_of("a\n\nb\n\n", "\n\n") == ("a", "b")
    assert steps_of("\n\n", "\n\n") == ()


def test_meters_count_what_engines_did() -> None:
    from actors.engines.fake import FakePolicy, FakePRM
    from actors.spec import ModelSpec

    spec, meter = ModelSpec("fake", "fake", "fake", "float64"), Meter()
    policy, prm = MeteredPolicy(FakePolicy(spec), meter), MeteredPRM(FakePRM(spec).score, meter)
    [unit] = partition(PROBLEMS[0], _config("beam", 1), N)
    budget = asyncio.run(run_unit(unit, policy, prm)).budget
    assert meter.policy_tokens == budget.policy_tokens > 0
    assert meter.prm_tokens == budget.prm_tokens_computed > 0
    assert len(meter.scored) == budget.generations
