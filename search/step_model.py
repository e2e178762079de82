"""Steps as long and as many as those of a model are assumed or measured to be, without a model.

For predictions: the search code runs on them as on real steps, engines are charged for their
tokens, and nobody reads them. Invariant: a step depends on its seed and its place alone, so the
same searches are simulated whatever the number of replicas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from search.protocols import (
    Completion,
    Expansion,
    PolicyPath,
    PRMPath,
    Sampling,
    Score,
    StopReason,
)
from search.seeds import derive_seed
from search.token_ids import count_ids, pack_ids, unpack_ids

_DRAW_BITS = 21
_DRAWS = 1 << _DRAW_BITS
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """How a policy's steps are distributed, and what is read beside them.

    Step lengths are lognormal with the mean `step_tokens` and the coefficient of variation
    `step_cv`. `end_shares[d]` is the share of steps at depth d (from 0) that end their solution;
    deeper ones all do. A work unit makes the policy read `prompt_tokens` and the PRM
    `prm_prompt_tokens` once, and the PRM reads `prm_tokens_per_token` for each token of a step.
    """

    step_tokens: float
    step_cv: float
    end_shares: tuple[float, ...]
    prompt_tokens: int = 0
    prm_prompt_tokens: int = 0
    prm_tokens_per_token: float = 1.0

    @property
    def steps(self) -> float:
        """Steps of a solution on average."""
        alive, steps = 1.0, 1.0
        for share in self.end_shares:
            alive *= 1.0 - share
            steps += alive
        return steps

    def length(self, draw: int) -> int:
        """Tokens of a step, from `_DRAWS` equally likely draws."""
        sigma = math.sqrt(math.log1p(self.step_cv**2))
        normal = _NORMAL.inv_cdf((draw + 0.5) / _DRAWS) if sigma else 0.0
        return max(1, round(self.step_tokens * math.exp(sigma * normal - sigma**2 / 2)))

    def ends(self, depth: int, draw: int) -> bool:
        """Whether a step at this depth ends its solution."""
        share = self.end_shares[depth] if depth < len(self.end_shares) else 1.0
        return draw < share * _DRAWS


def evenly_spread_ends(steps: int, spread: int) -> tuple[float, ...]:
    """End shares that make every number of steps in steps +- spread equally likely."""
    first, last = max(1, steps - spread), steps + spread
    ends = (1.0 / (last - step + 1) for step in range(first, last))
    return (*[0.0] * (first - 1), *ends)


@dataclass(slots=True)
class ModelledPolicy:
    """The policy of one work unit: its first call reads the prompt, all later ones find it.

    The last id of a step is its depth, from 1; the text says how long it is.
    """

    model: StepModel
    _prompt_read: bool = field(default=False, init=False)

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        """Draws n steps; completion i depends on the path's depth, `seed` and i alone."""
        depth = unpack_ids(path.token_ids[-4:])[0] if path.token_ids else 0
        completions = tuple(
            self._step(depth, derive_seed(seed, place), sampling.delimiter, max_tokens)
            for place in range(first, first + n)
        )
        computed = 0 if self._prompt_read else self.model.prompt_tokens
        self._prompt_read = True
        prefix = n * (self.model.prompt_tokens + count_ids(path.token_ids))
        return Expansion(completions, prefix, computed)

    def _step(self, depth: int, draw: int, delimiter: str, most: int) -> Completion:
        length = self.model.length(draw % _DRAWS)
        ends = self.model.ends(depth, (draw >> _DRAW_BITS) % _DRAWS)
        tokens = min(length, most)
        packed = bytes(4 * (tokens - 1)) + pack_ids([depth + 1])
        text = f"{tokens} {draw >> 2 * _DRAW_BITS}"
        if length > most:
            return Completion(text, packed, -1.0, StopReason.LENGTH)
        if ends:
            return Completion(text, packed, -1.0, StopReason.EOS)
        return Completion(text + delimiter, packed, -1.0, StopReason.DELIMITER)


@dataclass(slots=True)
class ModelledPRM:
    """The PRM of one work unit: rewards at random, by the text of the step."""

    model: StepModel
    _prompt_read: bool = field(default=False, init=False)

    async def score(self, paths: Sequence[PRMPath]) -> list[Score]:
        """One reward for each path; the first one reads the prompt too."""
        return [self._score(path.steps[-path.new_steps :]) for path in paths]

    def _score(self, steps: Sequence[str]) -> Score:
        tokens = sum(int(step.partition(" ")[0]) for step in steps)
        mark = steps[-1].partition(" ")[2]
        minimal = max(1, round(tokens * self.model.prm_tokens_per_token))
        prompt = 0 if self._prompt_read else self.model.prm_prompt_tokens
        self._prompt_read = True
        return Score(derive_seed(mark) % _DRAWS / _DRAWS, minimal + prompt, minimal)
