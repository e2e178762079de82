"""What a search spent: counted where it is spent, read at the end."""

from dataclasses import dataclass

from search.protocols import Expansion, Score
from search.token_ids import count_ids
from search.tree import Tree

FLOPS_PER_PARAMETER_AND_TOKEN = 2


@dataclass(slots=True)
class Budget:
    """Tokens and calls of one work unit. A *generation* is one sampled step."""

    generations: int = 0
    policy_tokens: int = 0
    prefix_tokens: int = 0
    prefix_tokens_computed: int = 0
    prm_tokens_computed: int = 0
    prm_tokens_minimal: int = 0
    policy_replica: str = ""
    prm_replica: str = ""

    def spend_expansion(self, expansion: Expansion) -> None:
        """Counts the sampled steps and their prefix."""
        self.generations += len(expansion.completions)
        self.policy_tokens += sum(count_ids(c.token_ids) for c in expansion.completions)
        self.prefix_tokens += expansion.prefix_tokens
        self.prefix_tokens_computed += expansion.prefix_tokens_computed
        self.policy_replica = expansion.replica

    def spend_scores(self, scores: list[Score]) -> None:
        """Counts scored steps."""
        self.prm_tokens_computed += sum(score.tokens_computed for score in scores)
        self.prm_tokens_minimal += sum(score.tokens_minimal for score in scores)
        self.prm_replica = scores[-1].replica if scores else self.prm_replica

    def flops(self, policy_parameters: int, prm_parameters: int) -> float:
        """Forward cost, 2 x parameters x tokens (Kaplan et al. 2020, section 2.1).

        Counts every token computed: sampled, prompt and prefix that missed the cache, PRM.
        """
        policy = policy_parameters * (self.policy_tokens + self.prefix_tokens_computed)
        prm = prm_parameters * self.prm_tokens_computed
        return float(FLOPS_PER_PARAMETER_AND_TOKEN * (policy + prm))


def discarded_tokens(tree: Tree) -> int:
    """Policy tokens on no path that counts as a solution (unfinished candidates count)."""
    used = {node for solution in tree.solutions for node in tree.path(solution.node)}
    return sum(count_ids(ids) for node, ids in enumerate(tree.token_ids) if node not in used)
