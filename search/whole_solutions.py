"""Solutions written from their first step to their last in one request.

A strategy that chooses nothing on the way need not be asked between two steps, so a policy
that is far away saves all calls of a solution but one. Invariant: a solution depends on the
seeds of its request alone. A policy that answers step by step uses each of them, and writes what
one request a step would have written; one that writes on to the end uses the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from search.answers import boxed_answer
from search.config import Limits
from search.protocols import (
    Carried,
    Completion,
    Expansion,
    Policy,
    PolicyPath,
    Sampling,
    StopReason,
)
from search.returned import completion_fault
from search.seeds import node_seed
from search.thinking import Thinking
from search.token_ids import count_ids
from search.tree import STEP_ENDS


@dataclass(frozen=True, slots=True)
class SolutionRequest(Carried):
    """One solution of a problem, in a subtree of its own: each step is its parent's child 0."""

    problem: str
    problem_id: str
    strategy: str
    run_seed: int
    subtree: int
    sampling: Sampling
    limits: Limits
    thinking: Thinking | None = None

    @property
    def most_tokens(self) -> int:
        """Tokens that the solution can have at most."""
        limits = self.limits
        return min(limits.max_solution_tokens, limits.max_steps * limits.max_step_tokens)

    def seeds(self) -> Iterator[int]:
        """The seed of each step, as its parent's id gives it."""
        node_id = f"{self.subtree}:"
        for depth in range(self.limits.max_steps):
            yield node_seed(self.run_seed, self.problem_id, self.strategy, node_id)
            node_id += "0" if not depth else ".0"


@runtime_checkable
class WritesSolutions(Protocol):
    """A policy that takes a whole solution as one request."""

    async def write(self, request: SolutionRequest) -> list[Expansion]:
        """An expansion of one completion for each step; raises PolicyError."""
        ...


async def write_solution(policy: Policy, request: SolutionRequest) -> list[Expansion]:
    """The steps of a solution, in one request if the policy takes it, else in one each."""
    if isinstance(policy, WritesSolutions):
        return await policy.write(request)
    return await step_by_step(policy, request)


async def step_by_step(policy: Policy, request: SolutionRequest) -> list[Expansion]:
    """The steps of a solution, each asked for when the one before it is there."""
    limits, path, text, expansions = request.limits, b"", "", []
    for depth, seed in enumerate(request.seeds()):
        most = step_tokens_left(limits, count_ids(path))
        place = PolicyPath(request.problem, path)
        expansion = await policy.expand(place, 1, request.sampling, most, seed)
        expansions.append(expansion)
        # What is not one step of text is for the search to refuse.
        if len(expansion.completions) != 1:
            break
        [completion] = expansion.completions
        if completion_fault(completion) or not completion.token_ids:
            break
        tokens, thinking = count_ids(path), request.thinking
        if end_of_step(limits, completion, tokens, depth, thinking, text) not in STEP_ENDS:
            break
        path += completion.token_ids
        text += completion.text
    return expansions


def steps_and_rest(steps: list[Expansion], tokens_past_end: int) -> list[Expansion]:
    """The steps of a solution, the last of which says what was written after it."""
    if not tokens_past_end:
        return steps
    *before, last = steps
    return [*before, replace(last, tokens_past_end=tokens_past_end)]


def step_tokens_left(limits: Limits, tokens_before: int) -> int:
    """Tokens that the next step of a path may have."""
    return min(limits.max_step_tokens, limits.max_solution_tokens - tokens_before)


def end_of_step(
    limits: Limits,
    completion: Completion,
    tokens_before: int,
    steps_before: int,
    thinking: Thinking | None = None,
    text_before: str = "",
) -> StopReason:
    """Why a step ended: what ends its solution, if anything does, else what its engine says.

    thinking, text_before: for a policy that thinks first, its marks and all that it wrote before.
    """
    text = completion.text
    spoken = thinking.spoken_steps([text_before, text])[-1] if thinking else text
    if completion.stop_reason is StopReason.EOS:
        return StopReason.EOS
    if limits.stop_at_boxed and _is_boxed(limits, spoken):
        return StopReason.BOXED
    cut = thinking is not None and thinking.is_cut(text_before + text)
    if tokens_before + count_ids(completion.token_ids) >= limits.max_solution_tokens:
        return StopReason.THINKING if cut else StopReason.MAX_TOKENS
    if limits.cut_step_ends and completion.stop_reason is StopReason.LENGTH:
        return StopReason.THINKING if cut else StopReason.MAX_TOKENS
    if steps_before + 1 >= limits.max_steps:
        return StopReason.THINKING if cut else StopReason.MAX_STEPS
    return completion.stop_reason


def _is_boxed(limits: Limits, text: str) -> bool:
    return limits.box_mark in text if limits.box_mark else bool(boxed_answer(text))
