"""Prompts: each style's text, and exactly one BOS where the tokenizer wants one."""

from collections.abc import Sequence

import pytest
from conftest import TOKENIZER_FOLDER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from actors.engines.loading import load_tokenizer, render_prompt
from actors.prompts import PROBLEM, PROMPT_STYLES, PromptStyle
from actors.spec import ModelSpec
from jobs.models import prompt_style
from jobs.settings import PolicySettings
from search.errors import RecipeError

pytestmark = pytest.mark.unit

QUESTION = "What is 12 + 7?"
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
LLAMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)
R1_CHAT = LLAMA_CHAT + "{{ '<think>\\n' }}"


@pytest.fixture(scope="module")
def chatml() -> PreTrainedTokenizerBase:
    """The repository's tokenizer: ChatML, no BOS."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)
    return tokenizer


def byte_tokenizer(adds_bos: bool, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A token a byte and <s>, which it puts before every text if told so, as Llama's does."""
    characters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<s>": 0} | {each: place for place, each in enumerate(sorted(characters), 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    fast.chat_template = chat_template
    return fast


def ids_of(tokenizer: PreTrainedTokenizerBase, style: PromptStyle) -> Sequence[int]:
    """The prompt's ids as the engines get them."""
    text = render_prompt(tokenizer, style, QUESTION)
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


# Styles


def test_chat_is_the_problem_in_the_models_own_template(chatml: PreTrainedTokenizerBase) -> None:
    text = render_prompt(chatml, PROMPT_STYLES["chat"], QUESTION)
    assert text == f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    told = render_prompt(chatml, PromptStyle(system="Be short."), QUESTION)
    assert told == "<|im_start|>system\nBe short.<|im_end|>\n" + text


def test_a_plain_text_is_a_system_prompt(chatml: PreTrainedTokenizerBase) -> None:
    same = render_prompt(chatml, PromptStyle(system=BOXED), QUESTION)
    assert render_prompt(chatml, BOXED, QUESTION) == same


def test_qwen_boxed_asks_for_a_boxed_answer(chatml: PreTrainedTokenizerBase) -> None:
    assert PROMPT_STYLES["qwen_boxed"] == PromptStyle(system=BOXED)


def test_llama_steps_asks_for_headings_between_blank_lines() -> None:
    system = PROMPT_STYLES["llama_steps"].system
    assert "\n\n## Step 1: [" in system
    assert "\n\n## Step 2: [" in system
    closing = "Therefore, the final answer is: $\\boxed{answer}$. I hope it is correct."
    assert f"\n\n{closing}\n\n" in system


def test_r1_has_no_system_message_and_begins_to_think(chatml: PreTrainedTokenizerBase) -> None:
    text = render_prompt(chatml, PROMPT_STYLES["r1"], QUESTION)
    user = f"<|im_start|>user\n{QUESTION}\n{BOXED}<|im_end|>\n"
    assert text == user + "<|im_start|>assistant\n<think>\n"


def test_r1_opens_once_where_the_chat_template_opens_too() -> None:
    text = render_prompt(byte_tokenizer(True, R1_CHAT), PROMPT_STYLES["r1"], QUESTION)
    assert text == f"<s>[user]{QUESTION}\n{BOXED}[assistant]<think>\n"


def test_a_template_is_the_whole_prompt(chatml: PreTrainedTokenizerBase) -> None:
    style = PromptStyle(template="Q: {problem}\nA, as \\boxed{}:")
    assert render_prompt(chatml, style, QUESTION) == f"Q: {QUESTION}\nA, as \\boxed{{}}:"
    assert render_prompt(chatml, style, PROBLEM) == "Q: {problem}\nA, as \\boxed{}:"


def test_special_tokens_of_a_template_are_special(chatml: PreTrainedTokenizerBase) -> None:
    ids = ids_of(chatml, PromptStyle(template="<|im_start|>{problem}"))
    assert ids[0] == chatml.convert_tokens_to_ids("<|im_start|>")


# BOS


@pytest.mark.parametrize(
    ("adds_bos", "style", "expected"),
    [
        (True, PROMPT_STYLES["chat"], 1),
        (True, PROMPT_STYLES["llama_steps"], 1),
        (True, PROMPT_STYLES["r1"], 1),
        (True, PromptStyle(template="Q: {problem}"), 1),
        (True, PromptStyle(template="<s>Q: {problem}"), 1),
        (True, PromptStyle(template="{problem}"), 1),
        (False, PromptStyle(template="Q: {problem}"), 0),
        (False, PromptStyle(template="<s>Q: {problem}"), 1),
    ],
)
def test_a_prompt_has_the_bos_its_tokenizer_wants_once(
    adds_bos: bool, style: PromptStyle, expected: int
) -> None:
    ids = ids_of(byte_tokenizer(adds_bos, LLAMA_CHAT), style)
    assert list(ids).count(0) == expected
    assert 0 not in ids[1:]


def test_a_tokenizer_without_bos_gets_none(chatml: PreTrainedTokenizerBase) -> None:
    assert chatml.bos_token is None
    assert render_prompt(chatml, PromptStyle(template="{problem}"), QUESTION) == QUESTION


# Models without a chat template


def spec_of(folder: str, prompt: PromptStyle, family: str = "") -> ModelSpec:
    return ModelSpec("base", folder, "transformers", "float64", prompt=prompt, family=family)


def test_a_model_without_a_chat_template_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = str(tmp_path_factory.mktemp("base"))
    byte_tokenizer(True).save_pretrained(folder)
    with pytest.raises(RecipeError, match=r"policies\.N\.prompt: template"):
        load_tokenizer(spec_of(folder, PROMPT_STYLES["qwen_boxed"]))
    template = PromptStyle(template="Q: {problem}")
    assert ids_of(load_tokenizer(spec_of(folder, template)), template)[0] == 0
    load_tokenizer(spec_of(folder, PromptStyle(), family="math-shepherd"))


# From the recipe


@pytest.mark.parametrize("name", ["llama_steps", "qwen_boxed", "r1"])
def test_a_style_of_the_recipe_is_that_of_the_table(name: str) -> None:
    assert prompt_style(PolicySettings(model="a/b", prompt=name)) == PROMPT_STYLES[name]


def test_texts_of_the_recipe_reach_the_style() -> None:
    chat = PolicySettings(model="a/b", system_prompt="Be short.")
    template = PolicySettings(model="a/b", prompt="template", prompt_template="Q: {problem}")
    assert prompt_style(chat) == PromptStyle(system="Be short.")
    assert prompt_style(template) == PromptStyle(template="Q: {problem}")
