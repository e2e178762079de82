"""The memory of a tree: at most 200 bytes a node and 4 a token, texts and ids counted.

Steps have about 50 tokens with 4 bytes of text each. An independent sample comes into the tree
when it is written to its end, so it needs no ids there.
"""

import pytest

from benchmarks.memory import grown_tree

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("strategy", ["dvts", "beam", "best_of_n", "majority"])
@pytest.mark.parametrize("n", [64, 256])
def test_a_tree_stays_below_the_goal_all_the_time(strategy: str, n: int) -> None:
    worst, end = grown_tree(strategy, n)
    assert worst.tokens / worst.nodes == pytest.approx(50, abs=15)
    assert end.share_of_goal <= worst.share_of_goal <= 1.0


def test_texts_are_counted_and_most_of_a_tree() -> None:
    _, end = grown_tree("dvts", 64)
    assert end.text >= 4 * end.tokens
    assert end.rest <= 70 * end.nodes
