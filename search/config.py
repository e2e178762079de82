"""What one search is told: three widths, limits, sampling, and its part of the work."""

from dataclasses import dataclass, field

from search.protocols import Carried, Sampling
from search.rewards import Reduction
from search.thinking import Thinking


@dataclass(frozen=True, slots=True)
class Limits(Carried):
    """Checked in this order after every step: end of text, boxed answer, tokens, steps.

    `max_step_tokens` ends a step that found no delimiter; `stop_at_boxed` ends a solution
    with the step that holds a complete boxed answer.
    """

    max_steps: int = 40
    max_step_tokens: int = 512
    max_solution_tokens: int = 2048
    stop_at_boxed: bool = True


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """One search over one problem.

    n: solutions a search returns; branching: candidates sampled for each kept node; keep:
    nodes kept at a step (N/M for beam, 1 a subtree for DVTS, N for independent samples).
    reduction: how step rewards become the score by which candidates are kept. thinking: how a
    policy marks what it thinks before it answers; None if it does not.
    """

    strategy: str
    n: int
    branching: int
    keep: int
    reduction: Reduction
    run_seed: int
    limits: Limits = field(default_factory=Limits)
    sampling: Sampling = field(default_factory=Sampling)
    thinking: Thinking | None = None
