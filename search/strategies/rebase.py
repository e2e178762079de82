"""Reward-balanced expansion (REBASE, arXiv 2408.00724): width goes where the rewards are.

The first step has N candidates. From then on the width that finished solutions have left is
divided among the unfinished candidates by a softmax of their scores. A coupled search: how much
width is left, and who gets it, is known when all candidates of a depth are. Invariant: at every
depth the widths sum to N less the solutions found, so a search ends with exactly N solutions.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from search.candidates import side_by_side
from search.growth import Growth, unfinished
from search.tree import ROOT

WHOLE_TREE = 0


async def rebase(growth: Growth, subtrees: range) -> None:
    """Grows one tree until its width is used up by finished solutions."""
    del subtrees  # the candidates of a depth share one width
    tree, solutions = growth.tree, list[int]()
    shares = [(ROOT, growth.config.n)]
    while shares:
        families = await side_by_side(growth, shares, WHOLE_TREE)
        candidates = [child for family in families for child in family]
        solutions += [node for node in candidates if tree.ends_solution(node)]
        left = growth.config.n - len(solutions)
        shares = _shares(growth, unfinished(tree, candidates), left)
        expanded = {node for node, _ in shares}
        chosen = [node for node in candidates if tree.ends_solution(node) or node in expanded]
        tree.keep(chosen, candidates)
    tree.close(solutions)


def _shares(growth: Growth, growing: list[int], left: int) -> list[tuple[int, int]]:
    """(node, children) of those that get any, best first; of equal scores the earlier."""
    ranked = sorted(growing, key=growth.score, reverse=True)
    scores = [growth.score(node) for node in ranked]
    divided = widths(scores, left, growth.config.width_temperature)
    return [(node, width) for node, width in zip(ranked, divided, strict=True) if width]


def widths(scores: Sequence[float], left: int, temperature: float) -> list[int]:
    """`left` children divided among candidates in falling order of score; sums to `left` exactly.

    In turn each gets what is left times its part of the softmax over those not served yet,
    rounded up, so the best are favoured and many get none. Weights are float64; they are divided
    exactly, for in floats the sum drifts. An empty list if there is nobody to serve.
    """
    weights = [Fraction(math.exp((score - scores[0]) / temperature)) for score in scores]
    open_weight, divided = sum(weights), list[int]()
    for weight in weights:
        divided.append(math.ceil(left * weight / open_weight) if left else 0)
        left -= divided[-1]
        open_weight -= weight
    return divided
