"""Reading the final answer off a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.answers import boxed_answer


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", ""),
        ("no box", ""),
        ("The answer is \\boxed{42}.", "42"),
        ("\\boxed{ 42 \n}", "42"),
        ("\\boxed{}", ""),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\sqrt{\\frac{1}{x^{2}}}} done}", "\\sqrt{\\frac{1}{x^{2}}}"),
        ("\\boxed{1} and then \\boxed{2}", "2"),
        ("\\boxed{1} and then \\boxed{2", "1"),
        ("\\boxed{1} and then \\boxed{\\frac{1}{2}", "1"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\{1, 2}", "\\{1, 2"),
        ("\\boxed{1\\}", ""),
        ("\\boxed{1 \\\\}", "1 \\\\"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\boxed{", ""),
        ("\\boxed{\\", ""),
        ("boxed{1}", ""),
        ("\\boxed{1}\n\n\\boxed", "1"),
        ("\\boxed{\n\n7\n\n}", "7"),
    ],
)
def test_the_last_complete_box_is_the_answer(text: str, answer: str) -> None:
    assert boxed_answer(text) == answer


PIECES = st.sampled_from(["\\boxed{", "{", "}", "\\", "\\{", "\\}", "1", " ", "\n\n", "\\frac"])


@pytest.mark.unit
@given(st.text() | st.lists(PIECES, max_size=30).map("".join))
def test_reading_never_raises_and_reads_only_what_is_there(text: str) -> None:
    answer = boxed_answer(text)
    assert answer in text
    assert answer == answer.strip()
    if answer:
        assert "\\boxed{" in text


NESTED = st.recursive(
    st.text("ab1+ ", min_size=1, max_size=4),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(
        lambda parts: f"{{{''.join(parts)}}}"
    ),
    max_leaves=12,
)


@pytest.mark.unit
@given(NESTED, st.text("ab {}", max_size=10))
def test_nested_braces_are_read_whole(content: str, after: str) -> None:
    assert boxed_answer(f"so \\boxed{{{content}}} {after}") == content.strip()
