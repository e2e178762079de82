"""A search over several replicas: the same tree, steps where their prefixes are, all at work."""

import asyncio
from collections.abc import Sequence

import pytest

from actors.spread import SpreadPolicy, SpreadPRM, spread_policy, spread_prm
from search.config import Limits, SearchConfig
from search.growth import Growth
from search.partition import partition, run_unit
from search.problem import Problem
from search.protocols import Expansion, PolicyPath, PRMPath, Sampling, Score
from search.rewards import Reduction
from search.scripted import SeededPolicy, SeededPRM

pytestmark = pytest.mark.unit

PROBLEM = Problem("p", "1 + 1 =", "2")
TURNS = 20


class Watched:
    """A replica of both roles that notes what it is asked, and takes a while for it."""

    def __init__(self) -> None:
        self.policy, self.prm = SeededPolicy(), SeededPRM()
        self.wrote: set[bytes] = set()
        self.prefixes: list[bytes] = []
        self.asked = self.scored = 0

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        self.prefixes.append(path.token_ids)
        self.asked += n
        for _ in range(TURNS):
            await asyncio.sleep(0)
        found = await self.policy.expand(path, n, sampling, max_tokens, seed, first)
        self.wrote |= {path.token_ids + each.token_ids for each in found.completions}
        return found

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        self.scored += len(paths)
        await asyncio.sleep(0)
        return await self.prm.score(paths)

    @property
    def met(self) -> int:
        """Requests whose prefix this replica had written itself."""
        return sum(prefix in self.wrote for prefix in self.prefixes)


def grown(strategy: str, n: int, replicas: Sequence[Watched], slots: int = 0) -> Growth:
    config = SearchConfig(strategy, n, 4, max(1, n // 4), Reduction.LAST, 1, Limits())
    [unit] = partition(PROBLEM, config, n)
    return asyncio.run(run_unit(unit, spread_policy(replicas), spread_prm(replicas), slots))


@pytest.mark.parametrize("strategy", ["beam", "dvts", "best_of_n"])
@pytest.mark.parametrize("slots", [0, 64])
def test_the_tree_is_that_of_one_replica(strategy: str, slots: int) -> None:
    one, three = (
        grown(strategy, 64, [Watched() for _ in range(count)], slots).tree for count in (1, 3)
    )
    ids = [
        [tree.node_id(node, tree.subtrees[node]) for node in range(len(tree))]
        for tree in (one, three)
    ]
    assert sorted(ids[0]) == sorted(ids[1])
    texts = [sorted(tree.text(each.node) for each in tree.solutions) for tree in (one, three)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("strategy", ["beam", "dvts"])
def test_all_replicas_are_at_work_and_mostly_meet_their_own_prefixes(strategy: str) -> None:
    replicas = [Watched() for _ in range(4)]
    grown(strategy, 256, replicas)
    asked = [replica.asked for replica in replicas]
    assert max(asked) < 1.2 * min(asked)
    scored = [replica.scored for replica in replicas]
    assert max(scored) < 1.2 * min(scored)
    later = sum(len(each.prefixes) - each.prefixes.count(b"") for each in replicas)
    assert sum(each.met for each in replicas) > 0.7 * later


def test_the_first_steps_of_a_beam_are_divided() -> None:
    replicas = [Watched() for _ in range(4)]
    policy, path = SpreadPolicy(replicas), PolicyPath(PROBLEM.text, b"")
    whole = asyncio.run(SeededPolicy().expand(path, 64, Sampling(), 100, 5))
    spread = asyncio.run(policy.expand(path, 64, Sampling(), 100, 5))
    assert spread.completions == whole.completions
    assert spread.prefix_tokens == whole.prefix_tokens
    assert [replica.asked for replica in replicas] == [16] * 4


def test_scores_come_back_in_order() -> None:
    paths = [PRMPath(PROBLEM.text, (f"step {number}",)) for number in range(40)]
    replicas = [Watched() for _ in range(3)]
    found = asyncio.run(SpreadPRM(replicas).score(paths))
    assert found == asyncio.run(SeededPRM().score(paths))
    assert sorted(replica.scored for replica in replicas) == [13, 13, 14]


def test_one_replica_needs_no_spreading() -> None:
    replica = Watched()
    assert spread_policy([replica]) is replica
    assert spread_prm([replica]) is replica
