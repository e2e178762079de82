"""What one search is told: three widths, limits, sampling, and its part of the work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from search.protocols import Carried, Sampling
from search.rewards import Reduction
from search.thinking import Thinking


@dataclass(frozen=True, slots=True)
class Limits(Carried):
    """Checked in this order after every step: end of text, boxed answer, tokens, steps.

    `max_step_tokens` ends a step that found no delimiter; `stop_at_boxed` ends a solution
    with the step that holds a complete boxed answer. Two rules of published systems, off here:
    `box_mark`, a text that counts as a boxed answer wherever it stands; `cut_step_ends`, a step
    that found no delimiter ends its solution.
    """

    max_steps: int = 40
    max_step_tokens: int = 512
    max_solution_tokens: int = 2048
    stop_at_boxed: bool = True
    box_mark: str = ""
    cut_step_ends: bool = False


class Compat(StrEnum):
    """Published systems whose rules can be followed (docs/strategies.md)."""

    SEARCH_AND_LEARN = "search_and_learn"
    COMPUTE_OPTIMAL_TTS = "compute_optimal_tts"


class CompatOption(StrEnum):
    """Settings of a published rule that are off by default there: of search_and_learn's beam."""

    FILTER_DUPLICATES = "filter_duplicates"
    SORT_COMPLETED = "sort_completed"


WIDTH_TEMPERATURE = 0.2
# Names in a variant that say: a problem may have had more or fewer solutions than N.
STOP, ALLOCATION = "stop=", "allocation="
# In a variant: a part of a compute-optimal search, which is no search of its own.
ROUTED = "routed="
# In recipes and in the tables of results; it grows no tree itself, so it is no `Strategy`.
COMPUTE_OPTIMAL = "compute_optimal"


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """One search over one problem.

    n: solutions a search returns; branching: candidates sampled for each kept node; keep:
    nodes kept at a step (N/M for beam, 1 a subtree for DVTS, N for independent samples).
    reduction: how step rewards become the score by which candidates are kept. thinking: how a
    policy marks what it thinks before it answers; None if it does not.

    Settings of some strategies: score_every: steps of a candidate; lookahead: greedy steps that
    the PRM reads after it; width_temperature: how evenly `rebase` divides its width; compat:
    the system whose rule is followed instead; compat_options: which of its settings are on.
    spending: how its N solutions are given out, if not all of them to every problem.
    """

    strategy: str
    n: int
    branching: int
    keep: int
    reduction: Reduction
    run_seed: int
    limits: Limits = field(default_factory=Limits)
    sampling: Sampling = field(default_factory=Sampling)
    lookahead: int = 0
    score_every: int = 1
    width_temperature: float = WIDTH_TEMPERATURE
    compat: Compat | None = None
    compat_options: tuple[CompatOption, ...] = ()
    thinking: Thinking | None = None
    spending: str = ""

    @property
    def variant(self) -> str:
        """The settings that are not the default rule's, by name; "" if none is."""
        return variant_of(
            self.compat,
            self.compat_options,
            self.lookahead,
            self.score_every,
            self.width_temperature,
            self.spending,
        )

    @property
    def scores_each_step(self) -> bool:
        """Whether a candidate is one step, and scored as it stands."""
        return self.score_every == 1 and self.lookahead == 0


def is_uneven(variant: str) -> bool:
    """Whether the problems of a search had different numbers of solutions."""
    return any(part.startswith((STOP, ALLOCATION, ROUTED)) for part in variant.split())


def is_routed(variant: str) -> bool:
    """Whether rows are of a compute-optimal search: of its probe or of what it chose."""
    return routed_mark(variant) != ""


def routed_mark(variant: str) -> str:
    """What the rows of one compute-optimal search have in common; "" for other searches."""
    return next((part for part in variant.split() if part.startswith(ROUTED)), "")


def variant_of(
    compat: Compat | None,
    compat_options: tuple[CompatOption, ...],
    lookahead: int,
    score_every: int,
    width_temperature: float,
    spending: str,
) -> str:
    """Names what tells searches of one strategy apart, such as "lookahead=2 score_every=4"."""
    others = {
        "compat": compat,
        "compat_options": ",".join(sorted(set(compat_options))) or None,
        "lookahead": lookahead or None,
        "score_every": None if score_every == 1 else score_every,
        "width_temperature": None if width_temperature == WIDTH_TEMPERATURE else width_temperature,
    }
    named = [f"{name}={value}" for name, value in others.items() if value is not None]
    return " ".join([*named, spending] if spending else named)


_READ: Mapping[str, Callable[[str], Any]] = {
    "compat": Compat,
    "compat_options": lambda text: tuple(CompatOption(name) for name in text.split(",")),
    "lookahead": int,
    "score_every": int,
    "width_temperature": float,
}


def variant_settings(variant: str) -> dict[str, Any]:
    """The fields of `SearchConfig` that `variant_of` has named; ValueError for what it has not.

    How solutions are given out is no setting of a rule and is refused too.
    """
    parts = [part.partition("=") for part in variant.split()]
    if unknown := [name for name, _, _ in parts if name not in _READ]:
        raise ValueError(f"no setting {unknown[0]!r}")
    return {name: _READ[name](value) for name, _, value in parts}
