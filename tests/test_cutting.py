"""A solution written in one piece is cut into the steps that it would have been written in."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_steps import StepByStep

from actors.engines.cutting import Pieces, WrittenSolution
from actors.wire import ExpandItem
from search.config import Limits
from search.protocols import Completion, Expansion, Sampling, StopReason
from search.token_ids import count_ids, pack_ids, unpack_ids
from search.whole_solutions import SolutionRequest, step_by_step, steps_and_rest

pytestmark = pytest.mark.unit

# Bytes as tokens: 130 and 172 are pieces of the euro sign, as 226 is; some tokens hold several.
VOCABULARY = [
    b"a",
    b"\n",
    b"\n\n",
    b".\n",
    b"\n\n\n",
    b"\xe2",
    b"\x82",
    b"\xac",
    b"\\boxed{1}",
    b"",
]
END = len(VOCABULARY) - 1
EURO = b"\xe2\x82\xac".decode()
PROMPT_TOKENS = 7


def text_of(ids: Sequence[int]) -> str:
    return b"".join(VOCABULARY[each] for each in ids).decode(errors="replace")


def request(limits: Limits, delimiter: str = "\n\n") -> SolutionRequest:
    return SolutionRequest("1", "p", "best_of_n", 3, 0, Sampling(delimiter=delimiter), limits)


def written(ids: Sequence[int]) -> WrittenSolution:
    async def nothing(item: ExpandItem) -> Expansion:
        raise AssertionError(f"asked for {unpack_ids(item.path.token_ids)}")

    cost = (PROMPT_TOKENS, PROMPT_TOKENS)
    return WrittenSolution(ids, [-1.0] * len(ids), ids[-1] == END, *cost, Pieces(text_of), nothing)


@given(
    st.lists(st.integers(0, END - 1), max_size=60),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from(["\n\n", "\n", EURO, "a\n"]),
)
@settings(max_examples=500, deadline=None)
def test_the_steps_are_those_of_step_by_step(
    text: list[int], max_steps: int, step: int, solution: int, boxed: bool, delimiter: str
) -> None:
    limits = Limits(
        max_steps=max_steps,
        max_step_tokens=step,
        max_solution_tokens=solution,
        stop_at_boxed=boxed,
    )
    asked = request(limits, delimiter)
    ids = [*text, END]
    whole = written(ids[: asked.most_tokens])
    found = asyncio.run(step_by_step(whole, asked))
    assert found == asyncio.run(step_by_step(StepByStep(ids, text_of, END, PROMPT_TOKENS), asked))
    taken = sum(count_ids(each.completions[0].token_ids) for each in found)
    assert whole.tokens_past(found) == min(len(ids), asked.most_tokens) - taken


def test_what_was_not_written_is_asked_of_the_engine() -> None:
    async def more(item: ExpandItem) -> Expansion:
        asked.append(unpack_ids(item.path.token_ids))
        end = Completion("", pack_ids([END]), 0.0, StopReason.EOS)
        return Expansion((end,), 9, 9)

    asked: list[list[int]] = []
    cut = WrittenSolution([0, 0], [0.0, 0.0], False, 7, 7, Pieces(text_of), more)
    steps = asyncio.run(step_by_step(cut, request(Limits(max_step_tokens=4))))
    assert asked == [[0, 0]]
    assert [step.completions[0].text for step in steps] == ["aa", ""]
    assert cut.tokens_past(steps) == 0


def test_tokens_past_the_end_stand_at_the_last_step() -> None:
    ids = [8, 2, 0, 0, END]
    cut = written(ids)
    steps = asyncio.run(step_by_step(cut, request(Limits())))
    assert [step.completions[0].text for step in steps] == ["\\boxed{1}\n\n"]
    marked = steps_and_rest(steps, cut.tokens_past(steps))
    assert [step.tokens_past_end for step in marked] == [3]
    assert steps_and_rest(steps, 0) is steps
