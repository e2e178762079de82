"""Every PRM family on transformers: the rewards its card computes; and families from a recipe."""

import asyncio
import dataclasses
import math
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from prm_zoo import (
    DEPTHS,
    FAMILIES,
    MEMBERS,
    PROBLEM,
    STEPS,
    forward,
    made,
    qwen_rewards,
    skywork_line_rewards,
    spec_of,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from actors.engines import load_policy_engine, load_prm_engine
from actors.engines.transformers_prm import TransformersPRM
from actors.engines.value_head_checkpoint import as_sequence_classifier
from actors.prm_families import (
    PRM_FAMILIES,
    PRMFamily,
    family_of,
    reward_of,
    scores_empty_step,
)
from actors.spec import ModelSpec
from actors.wire import ScoreItem
from search.errors import RecipeError
from search.protocols import PRMPath, Score

pytestmark = pytest.mark.unit

HANG_S = 120
SHEPHERD = {
    "layout": "plain",
    "reading": "token_pair",
    "problem": "{problem} ",
    "separator": " ки",
    "between": "\n",
    "whole": True,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family."""
    return {name: made(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def score(engine: TransformersPRM, *paths: Sequence[str]) -> list[Score]:
    async def score_all() -> list[Score]:
        items = [ScoreItem(PRMPath(PROBLEM, tuple(steps))) for steps in paths]
        async with asyncio.timeout(HANG_S), asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(engine.score(item)) for item in items]
        return [task.result() for task in running]

    return asyncio.run(score_all())


def rewards_of(engine: TransformersPRM, steps: Sequence[str]) -> list[float]:
    """The reward of every step."""
    paths = [steps[:depth] for depth in range(1, len(steps) + 1)]
    return [found.reward for found in score(engine, *paths)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_are_those_of_the_card(folders: dict[str, Path], family: str) -> None:
    expected = MEMBERS[family].rewards(folders[family], STEPS)
    assert len(expected) == len(STEPS)
    assert len({round(reward, 3) for reward in expected}) == len(STEPS)
    engine = TransformersPRM(spec_of(family, folders[family]))
    assert rewards_of(engine, STEPS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_costs_its_own_tokens(folders: dict[str, Path], family: str) -> None:
    engine = TransformersPRM(spec_of(family, folders[family]))
    found = [score(engine, STEPS[:depth])[0] for depth in DEPTHS]
    assert found[0].tokens_computed > found[0].tokens_minimal
    assert all(later.tokens_computed == later.tokens_minimal for later in found[1:])
    total = sum(step.tokens_computed for step in found)
    once = score(TransformersPRM(spec_of(family, folders[family])), STEPS)
    assert once[0].tokens_computed == total


@pytest.mark.parametrize("family", FAMILIES)
def test_another_first_step_reuses_the_header(folders: dict[str, Path], family: str) -> None:
    engine = TransformersPRM(spec_of(family, folders[family]))
    score(engine, STEPS[:1])
    [other] = score(engine, STEPS[1:2])
    assert other.tokens_computed == other.tokens_minimal


def test_an_empty_last_step_costs_nothing(folders: dict[str, Path]) -> None:
    engine = TransformersPRM(spec_of("math-shepherd", folders["math-shepherd"]))
    [full] = score(engine, STEPS[:2])
    [empty] = score(engine, (*STEPS[:2], "\n\n"))
    assert (empty.reward, empty.tokens_computed, empty.tokens_minimal) == (full.reward, 0, 0)


@pytest.mark.parametrize(
    ("family", "checkpoint"),
    [
        ("qwen2.5-math-prm", "skywork-o1-prm"),
        ("skywork-o1-prm", "qwen2.5-math-prm"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused(
    folders: dict[str, Path], family: str, checkpoint: str
) -> None:
    with pytest.raises(RecipeError, match=r"is a Qwen2For\w+, and the family .* prm\.family"):
        TransformersPRM(spec_of(family, folders[checkpoint]))


def test_a_missing_folder_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    spec = spec_of("skywork-o1-prm", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["skywork-o1-prm"] / name).read_bytes())
    with pytest.raises(RecipeError, match="cannot load the model"):
        TransformersPRM(spec)


def test_a_solution_beyond_the_context_is_refused(folders: dict[str, Path]) -> None:
    for family in ("math-shepherd", "skywork-o1-prm", "rlhflow-mistral"):
        engine = TransformersPRM(spec_of(family, folders[family]))
        with pytest.raises(ExceptionGroup) as caught:
            score(engine, ("1 " * 600,))
        assert "lower limits.max_solution_tokens" in str(caught.value.exceptions[0])


def test_vllm_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("actors.engines.vllm", "actors.engines.vllm_prm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    spec = spec_of("math-shepherd", Path("nowhere"), "vllm")
    for load in (load_prm_engine, load_policy_engine):
        with pytest.raises(RecipeError, match="vLLM is not installed: pip install"):
            load(spec)


# search-and-learn's empty step


def test_search_and_learn_on_qwen(folders: dict[str, Path]) -> None:
    folder = folders["qwen2.5-math-prm"]
    engine = TransformersPRM(spec_of("qwen2.5-math-prm", folder, compat="search-and-learn"))
    system = PRM_FAMILIES["qwen2.5-math-prm"].system_prompt
    for steps in (STEPS[:1], STEPS[:3], STEPS):
        pieces = "".join(steps).split("\n\n")
        expected = qwen_rewards(folder, pieces, system)
        assert len(expected) == len(steps) + steps[-1].endswith("\n\n")
        assert score(engine, steps)[0].reward == pytest.approx(expected[-1], abs=1e-5)


@pytest.mark.parametrize("family", ["rlhflow-mistral", "rlhflow-deepseek"])
def test_search_and_learn_on_rlhflow(folders: dict[str, Path], family: str) -> None:
    engine = TransformersPRM(spec_of(family, folders[family], compat="search-and-learn"))
    for steps in (STEPS[:1], STEPS[:3], STEPS):
        pieces = "".join(steps).split("\n\n")
        expected = MEMBERS[family].rewards(folders[family], pieces)
        assert score(engine, steps)[0].reward == pytest.approx(expected[-1], abs=1e-5)


def test_search_and_learn_on_skywork(folders: dict[str, Path]) -> None:
    folder = folders["skywork-o1-prm"]
    engine = TransformersPRM(spec_of("skywork-o1-prm", folder, compat="search-and-learn"))
    assert len(skywork_line_rewards(folder, "a\n\nb\n\n")) == 5
    for steps in (STEPS[:1], STEPS[:3], STEPS, ("a\n\n", "b\n\n")):
        expected = skywork_line_rewards(folder, "".join(steps))
        assert score(engine, steps)[0].reward == pytest.approx(expected[-1], abs=1e-5)


def test_an_unknown_compat_is_refused() -> None:
    spec = spec_of("reasonflux-prm", Path("nowhere"), compat="sal")
    with pytest.raises(RecipeError, match=r"prm\.options\.compat: 'sal'.*search-and-learn"):
        scores_empty_step(spec, PRM_FAMILIES["reasonflux-prm"])


# A family from a recipe


def custom(written: Any, folder: Path = Path("nowhere"), **options: Any) -> ModelSpec:
    return ModelSpec(
        "prm",
        str(folder),
        "transformers",
        "float32",
        max_batch=4,
        family="custom",
        options={"family": written, **options},
    )


def test_a_family_from_a_recipe_is_one_from_the_table(folders: dict[str, Path]) -> None:
    folder = folders["math-shepherd"]
    engine = load_prm_engine(custom(SHEPHERD, folder))
    assert isinstance(engine, TransformersPRM)
    expected = MEMBERS["math-shepherd"].rewards(folder, STEPS)
    assert rewards_of(engine, STEPS) == pytest.approx(expected, abs=1e-5)


def test_a_family_of_ones_own(folders: dict[str, Path]) -> None:
    """As Math-psa reads: a plain text, line ends as separators, two words compared."""
    folder = folders["rlhflow-mistral"]
    written = {
        "layout": "plain",
        "reading": "token_pair",
        "problem": "Q: {problem}\nA: ",
        "separator": "\n\n",
        "good": " +",
        "bad": "-",
    }
    engine = TransformersPRM(custom(written, folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = f"Q: {PROBLEM}\nA: " + "".join(f"{step.strip()}\n\n" for step in STEPS[:2])
    ids = tokenizer.encode(text, add_special_tokens=False)
    pair = [tokenizer.encode(" +")[-1], tokenizer.encode("-")[-1]]
    logits = forward(LlamaForCausalLM, folder, torch.tensor([ids])).logits[0, -1, pair]
    expected = float(logits.softmax(dim=-1)[0])
    assert score(engine, STEPS[:2])[0].reward == pytest.approx(expected, abs=1e-5)


def test_a_sequence_classifier_is_a_value_head(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skywork's, as it is made for vLLM; transformers' classifiers have no bias."""
    folder = Path(shutil.copytree(folders["skywork-o1-prm"], tmp_path / "prm"))
    tensors = load_file(folder / "model.safetensors")
    tensors["v_head.summary.bias"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = {
        "layout": "plain",
        "reading": "value",
        "problem": "{problem}\n",
        "separator": "\n",
        "separator_inside": " ",
    }
    engine = TransformersPRM(custom(written, Path(as_sequence_classifier(str(folder)))))
    expected = MEMBERS["skywork-o1-prm"].rewards(folder, STEPS)
    assert rewards_of(engine, STEPS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "prm.family: custom needs its fields in prm.options.family"),
        (
            {"seperator": "x"},
            "prm.options.family.seperator is not known: did you mean 'separator'?",
        ),
        ({"separator": 3}, "prm.options.family.separator must be of type str, not int"),
        ({"reward_class": True}, "prm.options.family.reward_class must be of type int, not bool"),
        (
            {"layout": "dialogue"},
            "prm.options.family.layout: 'dialogue' is not known: use chat, plain, turns",
        ),
        (
            {"reading": "logits"},
            "prm.options.family.reading: 'logits' is not known: use classes, token_pair, value",
        ),
        ({"system_prompt": "x"}, "prm.options.family.system_prompt: write it as prm.system_prompt"),
        ({}, "prm.options.family.separator must not be empty in the layout chat"),
        ({"layout": "turns"}, "prm.options.family.reading must be token_pair in the layout turns"),
        (
            {"separator": "x", "problem": "Q"},
            "prm.options.family.problem must contain {problem}",
        ),
        (
            {"separator": " xy", "separator_inside": "yz"},
            "prm.options.family.separator_inside must have no letter of the separator",
        ),
        (
            {"separator": "x", "reward_class": -1},
            "prm.options.family.reward_class must not be negative",
        ),
    ],
)
def test_a_wrong_family_from_a_recipe_says_what_to_change(written: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        family_of(custom(written))
    assert str(caught.value) == message


def test_a_family_by_name_takes_no_fields() -> None:
    spec = dataclasses.replace(custom(SHEPHERD), family="math-shepherd")
    with pytest.raises(RecipeError, match=r"prm\.options\.family is for prm\.family: custom"):
        family_of(spec)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'math-shepherd'"):
        family_of(ModelSpec("prm", "x", "transformers", "float32", family="math-sheperd"))


def chapter(heading: str) -> str:
    """A chapter of the page on families."""
    text = (Path(__file__).parent.parent / "docs" / "prm-families.md").read_text()
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_the_page_shows_a_family_that_works() -> None:
    written = yaml.safe_load(chapter("A family of your own").split("```")[1].removeprefix("yaml"))
    assert written["prm"]["options"]["family"] == SHEPHERD
    shepherd = PRM_FAMILIES["math-shepherd"]
    assert dataclasses.replace(family_of(custom(SHEPHERD)), empty_step=False) == shepherd


def test_the_page_says_every_field() -> None:
    rows = [
        line.split("|")[1:3] for line in chapter("A family of your own").splitlines() if "|" in line
    ]
    names = [re.findall(r"`(\w+)`", name) for name, _ in rows[2:]]
    fields = {field.name for field in dataclasses.fields(PRMFamily)}
    assert {name for row in names for name in row} == fields - {"system_prompt"}


# Formulas


@pytest.mark.parametrize(
    ("reading", "outputs", "reward"),
    [
        ("classes", (0.0, 0.0), 0.5),
        ("classes", (0.0, 1.0), 0.731059),
        ("token_pair", (0.0, 1.0), 0.268941),
        ("token_pair", (-2000.0, -2000.0), 0.5),
        ("value", (0.0,), 0.5),
        ("value", (2.0,), 0.880797),
        ("value", (-1000.0,), 0.0),
        ("value", (1000.0,), 1.0),
    ],
)
def test_formulas(reading: Any, outputs: Sequence[float], reward: float) -> None:
    assert reward_of(PRMFamily(reading=reading), outputs) == reward


@pytest.mark.parametrize("reading", ["classes", "token_pair", "value"])
def test_what_is_no_number_stays_none(reading: Any) -> None:
    assert math.isnan(reward_of(PRMFamily(reading=reading), (math.nan, 0.0)))


def test_a_class_that_the_head_has_not_is_refused(folders: dict[str, Path]) -> None:
    written = {"separator": "<extra_0>", "reward_class": 2}
    with pytest.raises(RecipeError, match=r"reward_class is 2, and .* has 2 classes"):
        TransformersPRM(custom(written, folders["qwen2.5-math-prm"]))
