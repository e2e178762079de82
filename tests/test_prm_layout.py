"""The layouts of every PRM family: where rewards stand, and that paths share their beginnings."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prm_zoo import (
    FAMILIES,
    LLAMA_3_TEMPLATE,
    MISTRAL_MERGES,
    PROBLEM,
    STEPS,
    made,
    sentencepiece_like,
    spec_of,
)
from tokenizers import normalizers
from transformers import AutoTokenizer

from actors.prm_layout import LaidOut, PRMLayout
from search.errors import PRMError, RecipeError
from search.protocols import PRMPath

pytestmark = pytest.mark.unit

SEPARATORS = {
    "qwen2.5-math-prm": "<extra_0>",
    "reasonflux-prm": "<extra_0>",
    "skywork-o1-prm": "\n",
    "math-shepherd": "ки",
}
# Whatever a policy may write: separators, answers, templates' words, letters of many bytes.
WORDS = ["1", "12", " ", "\n", "\n\n", "+", "-", " + ", "ки", " ки", "к", "и", "x", "é", "∑"]
WORDS += ["<extra_0>", "Step", "is", "<0x0A>", "<|im_end|>", "\\boxed{", "}", "{problem}", "{bos}"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PRMLayout]:
    """The layout of each family's checkpoint."""
    return {name: layout_of(name, made(name, tmp_path_factory.mktemp(name))) for name in FAMILIES}


def layout_of(family: str, folder: Path, **options: Any) -> PRMLayout:
    return PRMLayout(spec_of(family, folder, **options), tokenizer_of(folder))


@cache
def tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def laid_out(layout: PRMLayout, *steps: str, problem: str = PROBLEM) -> LaidOut:
    return layout.lay_out(PRMPath(problem, steps))


def text_of(layout: PRMLayout, *steps: str) -> str:
    return str(layout._tokenizer.decode(laid_out(layout, *steps).ids))


def compat(layout: PRMLayout) -> PRMLayout:
    folder = Path(layout._spec.model)
    return layout_of(layout._spec.family, folder, compat="search-and-learn")


# What is written


def test_qwen_as_on_its_card(zoo: dict[str, PRMLayout]) -> None:
    assert text_of(zoo["qwen2.5-math-prm"], "a = 1\n\n", "b = 2\n\n", "c") == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within "
        f"\\boxed{{}}.<|im_end|>\n<|im_start|>user\n{PROBLEM}<|im_end|>\n"
        "<|im_start|>assistant\na = 1<extra_0>b = 2<extra_0>c<extra_0>"
    )


def test_reasonflux_has_no_system_prompt(zoo: dict[str, PRMLayout]) -> None:
    assert text_of(zoo["reasonflux-prm"], "a\n\n", "b") == (
        f"<|im_start|>user\n{PROBLEM}<|im_end|>\n<|im_start|>assistant\na<extra_0>b<extra_0>"
    )


def test_skywork_as_its_code_does(zoo: dict[str, PRMLayout]) -> None:
    layout = zoo["skywork-o1-prm"]
    assert text_of(layout, "a\nb\n\n", "c") == f"{PROBLEM}\na b\nc\n"
    encode, line_end = layout._tokenizer.encode, layout._tokenizer.encode("\n")[-1:]
    pieces = laid_out(layout, "a\nb\n\n", "c").pieces
    assert list(map(list, pieces)) == [
        encode(PROBLEM + "\n"),
        encode("a b") + line_end,
        encode("c") + line_end,
    ]


def test_shepherd_as_on_its_card(zoo: dict[str, PRMLayout]) -> None:
    layout = zoo["math-shepherd"]
    expected = layout._tokenizer.encode(f"{PROBLEM} a = 1 ки\nb = 2 ки")
    assert laid_out(layout, "a = 1\n\n", "b = 2").ids == expected


@pytest.mark.parametrize("family", ["rlhflow-mistral", "rlhflow-deepseek"])
def test_rlhflow_ends_where_the_answer_is_predicted(zoo: dict[str, PRMLayout], family: str) -> None:
    assert text_of(zoo[family], "a\n\n", "b") == (
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{PROBLEM} a<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n+<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nb<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_delimiter_changes_nothing(zoo: dict[str, PRMLayout], family: str) -> None:
    bare = [step.removesuffix("\n\n") for step in STEPS]
    assert laid_out(zoo[family], *bare) == laid_out(zoo[family], *STEPS)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_step_is_left_out(zoo: dict[str, PRMLayout], family: str) -> None:
    layout = zoo[family]
    assert laid_out(layout, "a", "\n\n", "b").pieces == laid_out(layout, "a", "b").pieces
    ends_empty = laid_out(layout, "a", " \n\n")
    assert (ends_empty.pieces, ends_empty.new_tokens) == (laid_out(layout, "a").pieces, 0)
    only_empty = laid_out(layout, "", "\n\n")
    assert len(only_empty.pieces) == 2
    assert only_empty.pieces == laid_out(layout, "").pieces
    only_separator = laid_out(layout, SEPARATORS.get(family, " "))
    assert only_separator.pieces == only_empty.pieces


@pytest.mark.parametrize("family", SEPARATORS)
def test_a_separator_that_the_policy_wrote_does_not_count(
    zoo: dict[str, PRMLayout], family: str
) -> None:
    layout, separator = zoo[family], SEPARATORS[family]
    twice = separator[:1] + separator + separator[1:]  # one is left when one is taken out
    for text in (f"a{separator}b", f"a{twice}b", f"{separator}ab", f"ab{separator}"):
        found = laid_out(layout, text, "c")
        assert found.ids.count(found.ids[-1]) == laid_out(layout, "ab", "c").ids.count(
            found.ids[-1]
        )
        assert len(found.pieces) == 3


def test_a_separator_in_the_problem_does_not_count(zoo: dict[str, PRMLayout]) -> None:
    found = laid_out(zoo["math-shepherd"], "a", problem="What ки is ки 1?")
    assert found.ids.count(found.ids[-1]) == 1


# Where rewards stand


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problem=TEXTS.map("Q".__add__), steps=st.lists(TEXTS, min_size=1, max_size=4))
def test_a_path_begins_with_the_path_before_it(
    zoo: dict[str, PRMLayout], family: str, problem: str, steps: list[str]
) -> None:
    layout = zoo[family]
    texts = [step for step in steps if layout._clean(step)] or [""]
    whole = laid_out(layout, *texts, problem=problem)
    assert len(whole.pieces) == 1 + len(texts)
    for depth in range(1, len(texts) + 1):
        part = laid_out(layout, *texts[:depth], problem=problem)
        # The header of a text that is tokenised as one ends where first steps begin to differ.
        assert part.pieces == whole.pieces[: 1 + depth]
        assert part.new_tokens == len(part.pieces[-1])
        assert_reward_stands(layout, part.ids, whole.ids)


def assert_reward_stands(layout: PRMLayout, part: Sequence[int], whole: Sequence[int]) -> None:
    """At a separator's token, or where the next token is the answer."""
    if layout.family.layout != "turns":
        separator = SEPARATORS[layout._spec.family]
        assert part[-1] == layout._tokenizer.encode(separator)[-1]
    elif len(part) < len(whole):
        assert whole[len(part)] == layout._tokenizer.encode("+")[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_first_steps_share_their_header(zoo: dict[str, PRMLayout], family: str) -> None:
    headers = {laid_out(zoo[family], text).pieces[0] for text in ("1 + 1", "So", "- x", "ab")}
    assert len(headers) == 1
    assert len(headers.pop()) >= len(zoo[family]._tokenizer(PROBLEM)["input_ids"]) - 2


def shepherd_folder(folder: Path, merges: Sequence[tuple[str, str]], **written_as: str) -> Path:
    """A tokenizer that writes texts as others before it tokenises them."""
    tokenizer = sentencepiece_like([*MISTRAL_MERGES, *merges])
    normal = tokenizer.backend_tokenizer.normalizer
    changes = [normalizers.Replace(old, new) for old, new in written_as.items()]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([*changes, normal])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_separator_that_melts_into_a_step_is_refused(tmp_path: Path) -> None:
    layout = layout_of("math-shepherd", shepherd_folder(tmp_path, [("9", "▁ки")]))
    assert len(laid_out(layout, "1", "2").pieces) == 3
    with pytest.raises(PRMError, match=r"the layout yields 1 rewards for 2 steps.*prm\.family"):
        laid_out(layout, "2", "19")
    with pytest.raises(PRMError, match="the layout yields 0 rewards for 1 steps"):
        laid_out(layout, "19")


def test_a_space_in_disguise_before_a_separator_is_refused(zoo: dict[str, PRMLayout]) -> None:
    """Mistral's sign for a space makes one token of two spaces."""
    with pytest.raises(PRMError, match="the layout yields 0 rewards for 1 steps"):
        laid_out(zoo["math-shepherd"], "a▁")


def test_a_separator_too_many_is_refused(tmp_path: Path) -> None:
    layout = layout_of("math-shepherd", shepherd_folder(tmp_path, [], qq="ки"))
    with pytest.raises(PRMError, match="the layout yields 3 rewards for 2 steps"):
        laid_out(layout, "c", "a qq b")


def test_a_template_that_changes_what_came_before_is_refused(zoo: dict[str, PRMLayout]) -> None:
    source = Path(zoo["rlhflow-mistral"]._spec.model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = LLAMA_3_TEMPLATE.replace("bos_token", "messages | length")
    with pytest.raises(RecipeError, match=r"yields 1 rewards for 2 steps.*change prm\.family"):
        PRMLayout(spec_of("rlhflow-mistral", source), tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_no_text_is_refused(zoo: dict[str, PRMLayout], family: str) -> None:
    for problem, step in (("\ud800", "a"), ("a", "\ud800")):
        with pytest.raises(PRMError, match="Unicode"):
            laid_out(zoo[family], step, problem=problem)


# What is new in a path


@pytest.mark.parametrize("family", FAMILIES)
def test_all_new_steps_are_counted(zoo: dict[str, PRMLayout], family: str) -> None:
    def laid_out_anew(layout: PRMLayout, *steps: str) -> LaidOut:
        return layout.lay_out(PRMPath("What?", ("a", *steps), False, len(steps)))

    for layout in (zoo[family], compat(zoo[family])):
        found = laid_out_anew(layout, "b", "c")
        assert found.new_tokens == sum(map(len, found.pieces[2:]))
    for steps in (("b", " ", "c"), ("b", "c", " ")):
        assert laid_out_anew(zoo[family], *steps) == laid_out_anew(zoo[family], "b", "c")


# search-and-learn


def test_an_unfinished_text_has_an_empty_step(zoo: dict[str, PRMLayout]) -> None:
    for family in set(FAMILIES) - {"math-shepherd", "skywork-o1-prm"}:
        layout = compat(zoo[family])
        found, finished = laid_out(layout, "a\n\n", "b\n\n"), laid_out(layout, "a\n\n", "b")
        assert found.pieces[:-1] == finished.pieces
        assert found.pieces == laid_out(layout, "a\n\n", "b\n\n", "").pieces
        assert found.new_tokens == sum(map(len, found.pieces[2:]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_search_gives_steps_without_delimiters(zoo: dict[str, PRMLayout], family: str) -> None:
    layout = compat(zoo[family])
    bare = [step.removesuffix("\n\n") for step in STEPS]
    for depth in range(1, len(STEPS) + 1):
        path = PRMPath(PROBLEM, tuple(bare[:depth]), unfinished=STEPS[depth - 1].endswith("\n\n"))
        assert layout.lay_out(path) == laid_out(layout, *STEPS[:depth])
        assert zoo[family].lay_out(path) == laid_out(zoo[family], *STEPS[:depth])


def test_skywork_scores_every_line(zoo: dict[str, PRMLayout]) -> None:
    layout = compat(zoo["skywork-o1-prm"])
    found = laid_out(layout, "a\n\n", "b\n\n")
    assert [len(piece) for piece in found.pieces[1:]] == [3, 3, 1]  # a, "", b, "", ""
    assert len(laid_out(layout, "a\n\n", "b").pieces) == 3


def test_shepherd_has_no_empty_step(zoo: dict[str, PRMLayout]) -> None:
    layout = zoo["math-shepherd"]
    assert laid_out(compat(layout), *STEPS[:2]) == laid_out(layout, *STEPS[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_goes_on_has_no_empty_step(zoo: dict[str, PRMLayout], family: str) -> None:
    layout = compat(zoo[family])
    for depth in range(1, len(STEPS)):
        ids = laid_out(layout, *STEPS[: depth + 1]).ids
        steps = [
            token
            for piece in laid_out(layout, *STEPS[:depth]).pieces[: depth + 1]
            for token in piece
        ]
        assert ids[: len(steps)] == steps


# What is refused before anything is scored


@pytest.mark.parametrize(
    ("family", "token"),
    [
        ("qwen2.5-math-prm", "<extra_0>"),
        ("reasonflux-prm", "<extra_0>"),
        ("math-shepherd", " ки"),
    ],
)
def test_a_tokenizer_of_another_family_is_refused(
    zoo: dict[str, PRMLayout], family: str, token: str
) -> None:
    folder = Path(zoo["rlhflow-mistral"]._spec.model)
    with pytest.raises(RecipeError, match=rf"no token '{token}'.*{family}.*change prm\.family"):
        layout_of(family, folder)


def test_a_tokenizer_without_a_chat_template_is_refused(zoo: dict[str, PRMLayout]) -> None:
    folder = Path(zoo["math-shepherd"]._spec.model)
    with pytest.raises(RecipeError, match=r"chat_template.*change prm\.family"):
        layout_of("rlhflow-deepseek", folder)
