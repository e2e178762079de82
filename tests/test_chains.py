"""Steps of one solution that come together: one request where an engine can, equal scores."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from actors.chains import chain_reader, chains
from actors.prm import PRMReplica
from actors.spec import ModelFacts, ModelSpec
from actors.wire import Failure, ScoreItem
from search.errors import PRMError
from search.protocols import PRMPath, Score
from search.scripted import SeededPRM

pytestmark = pytest.mark.unit

FAKE = ModelSpec("fake", "fake", "fake", "float64")


def item(*steps: str, problem: str = "1") -> ScoreItem:
    return ScoreItem(PRMPath(problem, steps))


A, AB, ABC = item("a"), item("a", "b"), item("a", "b", "c")


@pytest.mark.parametrize(
    ("items", "lengths"),
    [
        ([], []),
        ([A], [1]),
        ([A, AB, ABC], [3]),
        ([A, ABC], [2]),  # an empty step between them was not to be scored
        ([AB, A], [1, 1]),
        ([A, A], [1, 1]),
        ([item("a", "x"), AB], [1, 1]),  # siblings
        ([A, item("a", "b", problem="2")], [1, 1]),
        ([A, AB, A, AB, ABC], [2, 3]),
    ],
)
def test_what_goes_on_from_one_another_is_a_chain(
    items: Sequence[ScoreItem], lengths: list[int]
) -> None:
    found = list(chains(items))
    assert [len(chain) for chain in found] == lengths
    assert [each for chain in found for each in chain] == list(items)


class Engine:
    """Scores one by one, and chains in one go if `reads_chains`; notes what it was asked."""

    def __init__(self) -> None:
        self.prm, self.asked = SeededPRM(), list[int]()

    def facts(self) -> ModelFacts:
        return ModelFacts(0, "none")

    def check_health(self) -> None:
        """Nothing can break."""

    async def score(self, item: ScoreItem) -> Score:
        self.asked.append(1)
        if "bad" in item.path.steps:
            raise PRMError("a bad step")
        [score] = await self.prm.score([item.path])
        return score


class ChainEngine(Engine):
    async def score_chain(self, items: Sequence[ScoreItem]) -> list[Score]:
        self.asked.append(len(items))
        if any("bad" in item.path.steps for item in items):
            raise PRMError("a bad step")
        return await self.prm.score([item.path for item in items])


@pytest.mark.parametrize(("engine", "asked"), [(Engine(), [1, 1, 1]), (ChainEngine(), [3])])
def test_scores_are_the_same_however_they_are_asked_for(engine: Engine, asked: list[int]) -> None:
    found = asyncio.run(chain_reader(engine)([A, AB, ABC]))
    assert engine.asked == asked
    assert found == asyncio.run(SeededPRM().score([each.path for each in (A, AB, ABC)]))


def test_one_item_is_asked_for_as_ever() -> None:
    engine = ChainEngine()
    asyncio.run(chain_reader(engine)([A]))
    assert engine.asked == [1]


async def collected(replies: AsyncIterator[list[tuple[int, Any]]]) -> dict[int, Any]:
    return {place: result async for reply in replies for place, result in reply}


@pytest.fixture(params=[Engine, ChainEngine])
def replica(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PRMReplica:
    monkeypatch.setattr("actors.replica.replica_name", lambda: "me")
    monkeypatch.setattr("actors.prm.load_prm_engine", lambda spec: request.param())
    return PRMReplica(FAKE)


def test_a_replica_answers_each_item_under_its_place(replica: PRMReplica) -> None:
    items = [item("x"), A, AB, item("y"), A, AB, ABC]
    found = asyncio.run(collected(replica.score_batch(items)))
    assert sorted(found) == list(range(7))
    expected = asyncio.run(SeededPRM(replica="me").score([each.path for each in items]))
    assert [found[place] for place in range(7)] == expected


def test_a_chain_that_fails_fails_no_other(replica: PRMReplica) -> None:
    items = [A, AB, item("a", "b", "bad"), item("y")]
    found = asyncio.run(collected(replica.score_batch(items)))
    failures = [found[place] for place in range(3)]
    assert all(isinstance(each, Failure) for each in failures)
    assert all(isinstance(each.error, PRMError) for each in failures)
    assert isinstance(found[3], Score)
