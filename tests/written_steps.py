"""A solution whose tokens are known, written step by step: what cutting it must come to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search.protocols import Completion, Expansion, PolicyPath, Sampling, StopReason
from search.token_ids import count_ids, pack_ids


@dataclass(frozen=True, slots=True)
class StepByStep:
    """The same tokens, and a step ends as soon as the text so far holds the delimiter.

    Each step is read from its start after each of its tokens. end: the token that ends a solution.
    """

    ids: Sequence[int]
    text_of: Callable[[Sequence[int]], str]
    end: int
    prompt_tokens: int = 0

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        start = count_ids(path.token_ids)
        for end in range(start + 1, start + max_tokens + 1):
            step, reason = self.ids[start:end], StopReason.LENGTH
            if sampling.delimiter in self.text_of(step):
                reason = StopReason.DELIMITER
            elif step[-1] == self.end:
                reason = StopReason.EOS
            if reason is not StopReason.LENGTH:
                break
        completion = Completion(self.text_of(step), pack_ids(step), float(-len(step)), reason)
        computed = 0 if start else self.prompt_tokens
        return Expansion((completion,), self.prompt_tokens + start, computed)
