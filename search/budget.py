"""What a search spent: counted where it is spent, read at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

from search.protocols import Expansion, Score
from search.token_ids import count_ids
from search.tree import Tree

FLOPS_PER_PARAMETER_AND_TOKEN = 2


@dataclass(slots=True)
class Budget:
    """Tokens and calls of one work unit. A *generation* is one sampled step.

    What the search consists of is counted for its tree alone, and is the same with and without
    speculation: generations, policy and prefix tokens, minimal PRM tokens. What was computed
    is counted wherever it was: wasted tokens, computed prefix and PRM tokens. `speculated`: written
    before it was known to be needed; `wasted`: written and not needed; of `aborted`
    sequences, given up in mid-text, nobody tells the tokens. `lookahead`: written for the PRM
    alone to read, and in no tree.
    """

    generations: int = 0
    policy_tokens: int = 0
    prefix_tokens: int = 0
    prefix_tokens_computed: int = 0
    prm_tokens_computed: int = 0
    prm_tokens_minimal: int = 0
    speculated_policy_tokens: int = 0
    wasted_policy_tokens: int = 0
    aborted_generations: int = 0
    lookahead_policy_tokens: int = 0
    policy_replica: str = ""
    prm_replica: str = ""

    def spend_expansion(self, expansion: Expansion) -> None:
        """Counts the sampled steps and their prefix."""
        self.generations += len(expansion.completions)
        self.policy_tokens += _tokens(expansion)
        self.prefix_tokens += expansion.prefix_tokens
        self.prefix_tokens_computed += expansion.prefix_tokens_computed
        self.wasted_policy_tokens += expansion.tokens_past_end
        self.policy_replica = expansion.replica

    def spend_scores(self, scores: list[Score]) -> None:
        """Counts scored steps."""
        self.prm_tokens_computed += sum(score.tokens_computed for score in scores)
        self.prm_tokens_minimal += sum(score.tokens_minimal for score in scores)
        self.prm_replica = scores[-1].replica if scores else self.prm_replica

    def spend_speculation(self, expansion: Expansion) -> None:
        """Counts steps that were begun before it was known that the search needs them."""
        self.speculated_policy_tokens += _tokens(expansion)

    def spend_waste(self, expansion: Expansion, scores: Sequence[Score | None]) -> None:
        """Counts steps that the search never asked for."""
        self.wasted_policy_tokens += _tokens(expansion)
        self.prefix_tokens_computed += expansion.prefix_tokens_computed
        self.prm_tokens_computed += sum(score.tokens_computed for score in scores if score)

    def spend_lookahead(self, expansion: Expansion) -> None:
        """Counts a step that is written for the PRM to read and then forgotten."""
        self.lookahead_policy_tokens += _tokens(expansion)
        self.prefix_tokens_computed += expansion.prefix_tokens_computed
        self.policy_replica = expansion.replica

    def flops(self, policy_parameters: int, prm_parameters: int) -> float:
        """Forward cost, 2 x parameters x tokens (Kaplan et al. 2020, section 2.1).

        Counts every token computed: sampled, prompt and prefix that missed the cache, PRM.
        """
        sampled = self.policy_tokens + self.wasted_policy_tokens + self.lookahead_policy_tokens
        policy = policy_parameters * (sampled + self.prefix_tokens_computed)
        prm = prm_parameters * self.prm_tokens_computed
        return float(FLOPS_PER_PARAMETER_AND_TOKEN * (policy + prm))


def _tokens(expansion: Expansion) -> int:
    return sum(count_ids(completion.token_ids) for completion in expansion.completions)


def discarded_tokens(tree: Tree) -> int:
    """Policy tokens on no path that counts as a solution (unfinished candidates count)."""
    used = {node for solution in tree.solutions for node in tree.path(solution.node)}
    return sum(tree.step_tokens(node) for node in range(len(tree)) if node not in used)
