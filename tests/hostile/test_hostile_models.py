"""What policies and PRMs may write or return: one solution or one unit is marked, no other."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from hostile_cases import Case, assert_one_line, each, spelled

from cluster.fanout import Site, _run_unit
from cluster.unit_tables import UnitTables
from search.answers import boxed_answer
from search.config import Limits, SearchConfig
from search.growth import Growth
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.protocols import (
    Completion,
    Expansion,
    PolicyPath,
    PRMPath,
    Sampling,
    Score,
    StopReason,
)
from search.rewards import Reduction
from search.scripted import EOS_ID
from search.seeds import node_seed
from search.token_ids import pack_ids

pytestmark = pytest.mark.unit

PROBLEM = Problem("p", "1 + 1?", "2")
GOOD = Completion("It is \\boxed{2}", pack_ids([7, 8, EOS_ID]), -1.0, StopReason.EOS)
HOSTILE_SUBTREE = 1
CONFIG = SearchConfig("best_of_n", 3, 1, 3, Reduction.LAST, 0, Limits())
SITE = Site("policy", "policy", "prm", 0, 0, 60.0)
Answers = Callable[[Completion], Sequence[Any]]


@dataclass
class OneHostile:
    """Writes the same good solution in every subtree, and something else in one."""

    hostile: Sequence[Any]
    seed: int = field(default_factory=lambda: seed_of(HOSTILE_SUBTREE))

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        steps = self.hostile if seed == self.seed else [GOOD]
        return Expansion(tuple(steps), 5, 5)


@dataclass
class OddPRM:
    """Returns a good score for good solutions, and something else for one text."""

    odd: Callable[[list[Score]], Any]
    about: str = "odd"

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        scores = [Score(0.5, 3, 3) for _ in paths]
        if any(self.about in path.steps[-1] for path in paths):
            return self.odd(scores)  # type: ignore[no-any-return]
        return scores


def seed_of(subtree: int) -> int:
    return node_seed(CONFIG.run_seed, PROBLEM.problem_id, CONFIG.strategy, f"{subtree}:")


def searched(policy: OneHostile, prm: OddPRM, solutions_per_unit: int) -> list[UnitTables]:
    """What each unit of the search leaves, as a worker runs it."""

    def grow(unit: WorkUnit) -> Any:
        return run_unit(unit, policy, prm)

    async def run() -> list[UnitTables]:
        units = partition(PROBLEM, CONFIG, solutions_per_unit)
        return [await _run_unit(unit, SITE, grow) for unit in units]

    return asyncio.run(run())


def plain(scores: list[Score]) -> list[Score]:
    return scores


def rows(units: list[UnitTables]) -> list[dict[str, Any]]:
    return [row for unit in units for row in unit.solutions.to_pylist()]


def undisturbed() -> list[dict[str, Any]]:
    return rows(searched(OneHostile([GOOD]), OddPRM(plain), 1))


def assert_one_unit_failed(units: list[UnitTables], words: str) -> None:
    """One error row with these words; the other units are as they would be without it."""
    assert [unit.failed for unit in units] == [False, True, False]
    assert_one_line(units[1].units["error"][0].as_py(), words)
    assert rows(units) == [row for row in undisturbed() if row["subtree"] != HOSTILE_SUBTREE]


@each("outputs")
def test_a_hostile_text_is_one_row_with_its_answer(case: Case) -> None:
    text = case.text("text")
    answer = spelled(case["answer"])
    assert boxed_answer(text) == answer
    step = dataclasses.replace(GOOD, text=text)
    units = searched(OneHostile([step]), OddPRM(plain), 1)
    assert not any(unit.failed for unit in units)
    found = rows(units)
    assert (found[1]["text"], found[1]["answer"]) == (text, answer)
    expected = undisturbed()
    assert [found[0], found[2]] == [expected[0], expected[2]]


@each("completions")
def test_a_hostile_completion_fails_its_unit_alone(case: Case) -> None:
    step: Any = GOOD
    if "set" in case.values:
        step = dataclasses.replace(GOOD, **case["set"])
    if "tokens" in case.values:
        step = dataclasses.replace(GOOD, token_ids=pack_ids([7] * case["tokens"]))
    steps = [case["instead"]] if "instead" in case.values else [step] * case.get("times", 1)
    units = searched(OneHostile(steps), OddPRM(plain), 1)
    assert_one_unit_failed(
        units, f"PolicyError: {case['words']}" if "the policy" in case["words"] else case["words"]
    )


@each("rewards")
def test_a_hostile_reward_fails_its_unit_alone(case: Case) -> None:
    def odd(scores: list[Score]) -> Any:
        if "scores" in case.values:
            return case["scores"]
        if "extra" in case.values:
            return scores * 2
        tokens = case.get("tokens", 3)
        return [Score(case["reward"], tokens, tokens) for _ in scores]

    step = dataclasses.replace(GOOD, text="odd \\boxed{3}")
    units = searched(OneHostile([step]), OddPRM(odd), 1)
    assert_one_unit_failed(units, case["words"])
    assert units[1].units["error"][0].as_py().startswith("PRMError: ")


def test_every_table_of_a_hostile_text_can_be_stored() -> None:
    for case in (Case("", {"text": "a\0b\x1b"}), Case("", {"text": "\u202e\ufffd"})):
        step = dataclasses.replace(GOOD, text=case.text("text"))
        for unit in searched(OneHostile([step]), OddPRM(plain), 3):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, unit.nodes.schema) as stream:
                stream.write_table(unit.nodes)
            assert pa.ipc.open_stream(sink.getvalue()).read_all().equals(unit.nodes)


def test_growth_is_what_the_cases_run() -> None:
    """Three subtrees, one unit each: a case that marks too much could be seen."""
    units = searched(OneHostile([GOOD]), OddPRM(plain), 1)
    assert [len(unit.solutions) for unit in units] == [1, 1, 1]
    assert isinstance(
        asyncio.run(run_unit(units[0].unit, OneHostile([GOOD]), OddPRM(plain))), Growth
    )
