"""Growing a tree by one node: sample, note why steps ended, score. All strategies use it.

Invariant: a node is in the tree with its reward before its strategy sees it.
"""

import math
from dataclasses import dataclass, field

from search.answers import boxed_answer
from search.budget import Budget
from search.config import SearchConfig
from search.errors import PolicyError, PRMError
from search.problem import Problem
from search.protocols import (
    PRM,
    Completion,
    Expansion,
    Policy,
    PolicyPath,
    PRMPath,
    Score,
    StopReason,
)
from search.rewards import reduce_rewards
from search.seeds import node_seed
from search.token_ids import count_ids
from search.tree import Tree


@dataclass(frozen=True, slots=True)
class Draft:
    """Children that are written and scored, but not in a tree yet; no score for an empty step."""

    expansion: Expansion
    scores: tuple[Score | None, ...]


@dataclass(slots=True)
class Growth:
    """One search under way: its tree, its budget, and who writes and who scores.

    `prm` is None for strategies that look at no rewards. `slots`: how many sequences of this
    search may be under way at once if it speculates; 0 means that it does not.
    """

    problem: Problem
    policy: Policy
    prm: PRM | None
    config: SearchConfig
    tree: Tree = field(default_factory=Tree)
    budget: Budget = field(default_factory=Budget)
    slots: int = 0

    async def expand(self, parent: int, subtree: int, n: int) -> list[int]:
        """Samples and scores n children of `parent`; returns their indices in order."""
        return self.put(parent, subtree, await self.draft(parent, subtree, n))

    async def draft(self, parent: int, subtree: int, n: int) -> Draft:
        """Samples and scores n children of `parent` without adding them."""
        return await self.scored(parent, await self.sample(parent, subtree, n))

    def score(self, node: int) -> float:
        """A node's path reduced to one number by the configured reduction."""
        return reduce_rewards(self.tree.scored_steps(node), self.config.reduction)

    async def sample(self, parent: int, subtree: int, n: int, first: int = 0) -> Expansion:
        """Children `first` to `first + n - 1` of `parent`, checked, but not in the tree."""
        limits, config = self.config.limits, self.config
        left = limits.max_solution_tokens - self.tree.tokens_so_far(parent)
        expansion = await self.policy.expand(
            PolicyPath(self.problem.text, self.tree.packed_ids(parent)),
            n,
            config.sampling,
            min(limits.max_step_tokens, left),
            self._seed(parent, subtree),
            first,
        )
        self._check_expansion(expansion, parent, n, min(limits.max_step_tokens, left))
        return expansion

    async def scored(self, parent: int, expansion: Expansion) -> Draft:
        """The sampled children with their scores; an empty last step adds nothing and has none."""
        completions = expansion.completions
        written = [each for each in completions if each.text.strip()]
        if self.prm is None or not written:
            return Draft(expansion, (None,) * len(completions))
        scores = await self.prm.score(self._prm_paths(parent, written))
        self._check_scores(scores, len(written))
        given = iter(scores)
        return Draft(
            expansion, tuple(next(given) if each.text.strip() else None for each in completions)
        )

    def put(self, parent: int, subtree: int, draft: Draft, first: int = 0) -> list[int]:
        """Adds drafted children to the tree, and what they cost to the budget."""
        nodes = []
        for place, completion in enumerate(draft.expansion.completions, first):
            node = self.tree.add(parent, subtree, place, self._judged(parent, completion))
            score = draft.scores[place - first]
            if score is not None:
                self.tree.rewards[node] = score.reward
                self.tree.prm_tokens[node] = score.tokens_minimal
            nodes.append(node)
        self.budget.spend_expansion(draft.expansion)
        self.budget.spend_scores([score for score in draft.scores if score is not None])
        return nodes

    def _seed(self, parent: int, subtree: int) -> int:
        config, node_id = self.config, self.tree.node_id(parent, subtree)
        return node_seed(config.run_seed, self.problem.problem_id, config.strategy, node_id)

    def _check_expansion(self, expansion: Expansion, parent: int, n: int, most: int) -> None:
        where = f"problem {self.problem.problem_id!r} after step {self.tree.depth(parent)}"
        lengths = [count_ids(c.token_ids) for c in expansion.completions]
        if len(lengths) != n or not all(lengths):
            written = sum(length > 0 for length in lengths)
            raise PolicyError(
                f"the policy returned {written} steps instead of {n} for {where}: "
                "check its prompt and its end-of-text token"
            )
        if max(lengths) > most:
            raise PolicyError(
                f"the policy wrote {max(lengths)} tokens where {most} were allowed, for {where}: "
                "its engine does not respect limits.max_step_tokens"
            )

    def _judged(self, parent: int, completion: Completion) -> Completion:
        """The completion with the reason that ends its solution, if one does."""
        reason = self._end_of_solution(parent, completion)
        return Completion(completion.text, completion.token_ids, completion.logprob, reason)

    def _end_of_solution(self, parent: int, completion: Completion) -> StopReason:
        limits = self.config.limits
        tokens = self.tree.tokens_so_far(parent) + count_ids(completion.token_ids)
        if completion.stop_reason is StopReason.EOS:
            return StopReason.EOS
        if limits.stop_at_boxed and boxed_answer(completion.text):
            return StopReason.BOXED
        if tokens >= limits.max_solution_tokens:
            return StopReason.MAX_TOKENS
        if self.tree.depth(parent) + 1 >= limits.max_steps:
            return StopReason.MAX_STEPS
        return completion.stop_reason

    def _prm_paths(self, parent: int, completions: list[Completion]) -> list[PRMPath]:
        delimiter, tree = self.config.sampling.delimiter, self.tree
        before = [tree.texts[step].removesuffix(delimiter) for step in tree.path(parent)]
        return [
            PRMPath(
                self.problem.text,
                (*before, each.text.removesuffix(delimiter)),
                each.text.endswith(delimiter),
            )
            for each in completions
        ]

    def _check_scores(self, scores: list[Score], expected: int) -> None:
        if len(scores) != expected:
            raise PRMError(
                f"the PRM returned {len(scores)} rewards for {expected} steps of problem "
                f"{self.problem.problem_id!r}: check its family in the recipe"
            )
        for score in scores:
            if not (math.isfinite(score.reward) and 0.0 <= score.reward <= 1.0):
                raise PRMError(
                    f"the PRM returned the reward {score.reward} for a step of problem "
                    f"{self.problem.problem_id!r}: rewards must lie in [0, 1]; check the "
                    "PRM's family and its dtype"
                )


def unfinished(tree: Tree, nodes: list[int]) -> list[int]:
    """The nodes that may be expanded."""
    return [node for node in nodes if not tree.ends_solution(node)]
