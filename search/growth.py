"""Growing a tree by one node: sample, note why steps ended, score. All strategies use it.

Invariant: a node is in the tree with its reward before its strategy sees it.
"""

from collections.abc import Sequence
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
from search.returned import completion_fault, score_fault
from search.rewards import reduce_rewards
from search.seeds import node_seed
from search.thinking import Scored
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
        if self.prm is None:
            return not_scored(expansion)
        paths = self._prm_paths(parent, [each.text for each in completions])
        written = [path for path in paths if path is not None]
        if not written:
            return not_scored(expansion)
        scores = await self.prm.score(written)
        self._check_scores(scores, len(written))
        given = iter(scores)
        return Draft(expansion, tuple(next(given) if path else None for path in paths))

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

    async def score_paths(self, nodes: Sequence[int], paths: Sequence[PRMPath | None]) -> None:
        """Scores nodes of the tree, each by the path given for it, if there is one."""
        pairs = zip(nodes, paths, strict=True)
        wanted = {node: path for node, path in pairs if path is not None}
        if self.prm is None or not wanted:
            return
        scores = await self.prm.score(list(wanted.values()))
        self._check_scores(scores, len(wanted))
        self._note_scores(list(wanted), scores)

    async def score_children(self, parent: int, nodes: list[int]) -> None:
        """Scores children of one node in one call; an empty step has no score."""
        texts = [self.tree.texts[node] for node in nodes]
        await self.score_paths(nodes, self._prm_paths(parent, texts))

    async def _score_path(self, nodes: list[int]) -> None:
        """Scores all steps of a path at once; an empty last step has no score."""
        if self.prm is not None:
            await self.score_paths(nodes, self._prefixes(nodes))

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
            config.thinking,
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
        for fault in filter(None, map(completion_fault, expansion.completions)):
            raise PolicyError(f"the policy returned {fault} for {where}: check its engine")
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
        limits, thinking, tree = self.config.limits, self.config.thinking, self.tree
        text = tree.text(parent) if thinking else ""
        tokens, steps = tree.tokens_so_far(parent), tree.depth(parent)
        reason = end_of_step(limits, completion, tokens, steps, thinking, text)
        return Completion(completion.text, completion.token_ids, completion.logprob, reason)

    def _prm_paths(self, parent: int, texts: Sequence[str]) -> list[PRMPath | None]:
        """What the PRM reads of each of these steps after `parent`."""
        before = [self.tree.texts[step] for step in self.tree.path(parent)]
        return [self._prm_path(self._read_steps([*before, text]), text) for text in texts]

    def _prefixes(self, nodes: list[int]) -> list[PRMPath | None]:
        """The paths from the first of these nodes, one below the other, to each of them."""
        texts = [self.tree.texts[node] for node in nodes]
        read = self._read_steps(texts)
        return [self._prm_path(read[: place + 1], text) for place, text in enumerate(texts)]

    def _read_steps(self, texts: Sequence[str]) -> Sequence[str]:
        """What of each step the PRM reads."""
        thinking = self.config.thinking
        return thinking.read_steps(texts) if thinking else texts

    def _prm_path(self, read: Sequence[str], text: str) -> PRMPath | None:
        """A path to its last step, written as `text`; None if the PRM has nothing of it to read."""
        *before, last = read
        if not last.strip():
            return None
        thinking, delimiter = self.config.thinking, self.config.sampling.delimiter
        if thinking is not None and thinking.score is Scored.ANSWER:
            # Steps of nothing but thinking are none to the PRM.
            before = [step for step in before if step.strip()]
        steps = tuple(step.removesuffix(delimiter) for step in (*before, last))
        return PRMPath(self.problem.text, steps, text.endswith(delimiter))

    def _check_scores(self, scores: list[Score], expected: int) -> None:
        given = len(scores) if isinstance(scores, list | tuple) else 0
        if given != expected:
            raise PRMError(
                f"the PRM returned {given} rewards for {expected} steps of problem "
                f"{self.problem.problem_id!r}: check its family in the recipe"
            )
        for fault in filter(None, map(score_fault, scores)):
            raise PRMError(
                f"the PRM returned {fault} for a step of problem {self.problem.problem_id!r}: "
                "rewards must lie in [0, 1]; check the PRM's family and its dtype"
            )


def unfinished(tree: Tree, nodes: list[int]) -> list[int]:
    """The nodes that may be expanded."""
    return [node for node in nodes if not tree.ends_solution(node)]
