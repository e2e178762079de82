"""Growing a tree by one node: sample, note why steps ended, score. All strategies use it.

Invariant: a node is in the tree with its reward before its strategy sees it.
"""

import math
from dataclasses import dataclass, field

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
)
from search.rewards import reduce_rewards
from search.seeds import node_seed
from search.token_ids import count_ids
from search.tree import ROOT, Tree
from search.whole_solutions import (
    SolutionRequest,
    end_of_step,
    step_tokens_left,
    write_solution,
)


@dataclass(frozen=True, slots=True)
class Draft:
    """Children that are written and scored, but not in a tree yet; no score for an empty step."""

    expansion: Expansion
    scores: tuple[Score | None, ...]


def not_scored(expansion: Expansion) -> Draft:
    """Children that are scored later, or never."""
    return Draft(expansion, (None,) * len(expansion.completions))


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

    async def write(self, subtree: int) -> int:
        """Writes a solution from its first step to its end, then scores it; its last node."""
        nodes = [ROOT]
        for expansion in await write_solution(self.policy, self._request(subtree)):
            self.check_expansion(expansion, nodes[-1], 1)
            nodes += self.put(nodes[-1], subtree, not_scored(expansion))
            self.tree.keep(nodes[-1:])
        self._check_end(nodes[-1])
        self.tree.forget_ids(nodes[1:])
        await self._score_path(nodes[1:])
        return nodes[-1]

    def score(self, node: int) -> float:
        """A node's path reduced to one number by the configured reduction."""
        return reduce_rewards(self.tree.scored_steps(node), self.config.reduction)

    async def sample(self, parent: int, subtree: int, n: int, first: int = 0) -> Expansion:
        """Children `first` to `first + n - 1` of `parent`, checked, but not in the tree."""
        expansion = await self.policy.expand(
            PolicyPath(self.problem.text, self.tree.packed_ids(parent)),
            n,
            self.config.sampling,
            self._most_tokens(parent),
            self.seed(parent, subtree),
            first,
        )
        self.check_expansion(expansion, parent, n)
        return expansion

    async def scored(self, parent: int, expansion: Expansion) -> Draft:
        """The sampled children with their scores; an empty last step adds nothing and has none."""
        completions = expansion.completions
        written = [each for each in completions if each.text.strip()]
        if self.prm is None or not written:
            return not_scored(expansion)
        texts = [each.text for each in written]
        scores = await self.prm.score(self._prm_paths(parent, texts))
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
            nodes.append(node)
        self.budget.spend_expansion(draft.expansion)
        scored = [pair for pair in zip(nodes, draft.scores, strict=True) if pair[1] is not None]
        self._note_scores([node for node, _ in scored], [score for _, score in scored if score])
        return nodes

    async def score_paths(self, nodes: list[int], paths: list[PRMPath]) -> None:
        """Scores nodes of the tree, each by the path given for it."""
        if self.prm is None or not paths:
            return
        scores = await self.prm.score(paths)
        self._check_scores(scores, len(paths))
        self._note_scores(nodes, scores)

    async def score_children(self, parent: int, nodes: list[int]) -> None:
        """Scores children of one node in one call; an empty step has no score."""
        written = [node for node in nodes if self.tree.texts[node].strip()]
        texts = [self.tree.texts[node] for node in written]
        await self.score_paths(written, self._prm_paths(parent, texts))

    async def _score_path(self, nodes: list[int]) -> None:
        """Scores all steps of a path at once; an empty last step has no score."""
        written = [node for node in nodes if self.tree.texts[node].strip()]
        await self.score_paths(written, self._prefixes(nodes, written))

    def _note_scores(self, nodes: list[int], scores: list[Score]) -> None:
        for node, score in zip(nodes, scores, strict=True):
            self.tree.rewards[node] = score.reward
            self.tree.prm_tokens[node] = score.tokens_minimal
        self.budget.spend_scores(scores)

    def _request(self, subtree: int) -> SolutionRequest:
        config, problem = self.config, self.problem
        return SolutionRequest(
            problem.text,
            problem.problem_id,
            config.strategy,
            config.run_seed,
            subtree,
            config.sampling,
            config.limits,
        )

    def _most_tokens(self, parent: int) -> int:
        return step_tokens_left(self.config.limits, self.tree.tokens_so_far(parent))

    def seed(self, parent: int, subtree: int, purpose: str = "") -> int:
        """The seed of a node's children, or of what else is drawn after it."""
        config, place = self.config, self.tree.node_id(parent, subtree) + purpose
        return node_seed(config.run_seed, self.problem.problem_id, config.strategy, place)

    def check_expansion(self, expansion: Expansion, parent: int, n: int) -> None:
        """Raises PolicyError if these are not n steps within the limits of one after `parent`."""
        where = f"problem {self.problem.problem_id!r} after step {self.tree.depth(parent)}"
        lengths = [count_ids(c.token_ids) for c in expansion.completions]
        if len(lengths) != n or not all(lengths):
            written = sum(length > 0 for length in lengths)
            raise PolicyError(
                f"the policy returned {written} steps instead of {n} for {where}: "
                "check its prompt and its end-of-text token"
            )
        most = self._most_tokens(parent)
        if max(lengths) > most:
            raise PolicyError(
                f"the policy wrote {max(lengths)} tokens where {most} were allowed, for {where}: "
                "its engine does not respect limits.max_step_tokens"
            )

    def _check_end(self, node: int) -> None:
        if node == ROOT or not self.tree.ends_solution(node):
            raise PolicyError(
                f"the policy left a solution of problem {self.problem.problem_id!r} at step "
                f"{self.tree.depth(node)}: all machines must run the same version of Branchwise"
            )

    def _judged(self, parent: int, completion: Completion) -> Completion:
        """The completion with the reason that ends its solution, if one does."""
        before, steps = self.tree.tokens_so_far(parent), self.tree.depth(parent)
        reason = end_of_step(self.config.limits, completion, before, steps)
        return Completion(completion.text, completion.token_ids, completion.logprob, reason)

    def _prm_paths(self, parent: int, texts: list[str]) -> list[PRMPath]:
        delimiter, tree = self.config.sampling.delimiter, self.tree
        before = [tree.texts[step].removesuffix(delimiter) for step in tree.path(parent)]
        return [
            PRMPath(
                self.problem.text,
                (*before, text.removesuffix(delimiter)),
                text.endswith(delimiter),
            )
            for text in texts
        ]

    def _prefixes(self, nodes: list[int], wanted: list[int]) -> list[PRMPath]:
        """The paths from the first of these nodes, one below the other, to each wanted one."""
        texts = [self.tree.texts[node] for node in nodes]
        steps = tuple(text.removesuffix(self.config.sampling.delimiter) for text in texts)
        return [
            PRMPath(self.problem.text, steps[: place + 1], texts[place] != steps[place])
            for place, node in enumerate(nodes)
            if node in wanted
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
