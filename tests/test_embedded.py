"""The shipped models: what they are, what they were trained on, and that they load anywhere."""

import json
import random
from pathlib import Path

import pytest
import reasoning_gym
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from actors.engines.process_reward_model import Qwen2ForProcessRewardModel
from actors.prm_families import PRM_FAMILIES
from embedded.card import DIFFICULTIES
from embedded.growing import attend_to_previous, grow
from embedded.ladder import LADDER, MODELS, PRM
from embedded.prm_data import changed_solution
from embedded.surprise import LOGIT_SIZE, Lanes, most_frequent, prepare_surprise
from embedded.tasks import TRAIN_SEED, step_labels, training_problems, worked_problems
from embedded.train import right_so_far
from jobs.catalogue import count_parameters
from jobs.recipe import load_recipe
from search.answers import boxed_answer

pytestmark = pytest.mark.unit
MEGABYTE = 2**20
MEMBERS = [*LADDER.values(), PRM]


def test_the_ladder_spans_thirtyfold_in_twenty_five_megabytes() -> None:
    sizes = [count_parameters(member.folder / "model.safetensors") for member in LADDER.values()]
    assert len(sizes) >= 3
    assert max(sizes) >= 30 * min(sizes)
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25 * MEGABYTE


@pytest.mark.parametrize("member", LADDER.values(), ids=lambda member: member.name)
def test_policies_load_by_the_library_alone(member: object) -> None:
    folder = member.folder  # type: ignore[attr-defined]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert AutoTokenizer.from_pretrained(folder).is_fast


def test_the_prm_has_the_parameters_of_its_class() -> None:
    config = json.loads((PRM.folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForProcessRewardModel"]
    model, report = Qwen2ForProcessRewardModel.from_pretrained(PRM.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.score[2].out_features == 2
    assert len(AutoTokenizer.from_pretrained(PRM.folder)("<extra_0>")["input_ids"]) == 1


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_digits_and_the_delimiter_are_single_tokens(member: object) -> None:
    tokenizer = AutoTokenizer.from_pretrained(member.folder)  # type: ignore[attr-defined]
    assert len(tokenizer("12345")["input_ids"]) == 5
    assert len(tokenizer("\n\n")["input_ids"]) == 1
    text = "Step 1: 12+3=15\n\nStep 2: The answer is \\boxed{15}. é→"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("difficulty", DIFFICULTIES, ids=lambda difficulty: difficulty.name)
def test_worked_solutions_satisfy_the_exam_of_reasoning_gym(difficulty: object) -> None:
    task, options = difficulty.task, difficulty.options  # type: ignore[attr-defined]
    data_set = reasoning_gym.create_dataset(task, seed=5, size=50, **options)
    for entry, worked in zip(data_set, worked_problems(task, 50, 5, options), strict=True):
        answer = boxed_answer(worked.steps[-1])
        assert data_set.score_answer(answer, entry) == 1.0
        assert all(step_labels(list(worked.steps), worked))


def test_the_demo_asks_nothing_that_training_drew() -> None:
    recipe = load_recipe(Path("jobs/recipes/demo.yaml"))
    assert all((source.seed or 0) + (source.size or 0) < TRAIN_SEED for source in recipe.data)
    tasks = {source.source for source in recipe.data}
    assert len(tasks) >= 2


def test_a_changed_solution_is_wrong_from_its_change_on() -> None:
    draw = random.Random(3)
    for problem in training_problems(300, stream=7):
        labels = step_labels(changed_solution(problem, draw), problem)
        assert labels == sorted(labels, reverse=True)


def test_labels_end_with_the_first_difference() -> None:
    assert right_so_far([1, 2, 3], [1, 2, 3, 4]) == [1, 1, 1]
    assert right_so_far([1, 9, 3], [1, 2, 3]) == [1, 0, 0]
    assert right_so_far([1, 2, 3], [1]) == [1, 0, 0]


def tiny_qwen(hidden: int, layers: int, feed_forward: int, heads: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=feed_forward,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        tie_word_embeddings=True,
        rms_norm_eps=1e-12,
    )
    return Qwen2ForCausalLM(config).double().eval()


def test_a_grown_model_computes_what_the_small_one_does() -> None:
    torch.manual_seed(0)
    small, large = tiny_qwen(16, 2, 24, 2), tiny_qwen(32, 3, 40, 4)
    grow(small, large)
    ids = torch.randint(0, 50, (2, 12))
    # In float64, up to the rounding of the norms' float32.
    assert torch.allclose(small(ids).logits, large(ids).logits, atol=1e-5)


def test_a_head_that_looks_one_token_back() -> None:
    model = tiny_qwen(64, 1, 24, 2).float()
    model.set_attn_implementation("eager")
    attend_to_previous(model.model.layers[0], head_size=32, rope_theta=10_000.0)
    ids = torch.randint(0, 50, (1, 20))
    attention = model(ids, output_attentions=True).attentions[0][0]
    assert bool((torch.diagonal(attention, offset=-1, dim1=1, dim2=2) > 0.99).all())


def test_the_first_layer_above_a_reader_sees_what_it_expected_here() -> None:
    torch.manual_seed(0)
    reader, prm = tiny_qwen(64, 2, 24, 2), tiny_qwen(128, 4, 24, 4)
    grow(reader, prm)
    ids = torch.randint(0, 50, (3, 12))
    coded = most_frequent(ids.flatten())
    prepare_surprise(prm.model, reader, coded)
    seen: list[torch.Tensor] = []
    norm = prm.model.layers[2].post_attention_layernorm
    norm.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    prm.model(ids)
    moved = seen[0][:, 1:, Lanes(64).expected] / LOGIT_SIZE
    expected = reader(ids).logits[:, :-1, coded]
    assert (moved - expected).abs().max() < 0.05 * expected.abs().max()
    written = seen[0][..., Lanes(64).identity].argmax(-1)
    assert bool((coded[written.clamp(max=23)] == ids)[written < 24].all())
    assert bool(torch.isin(ids, coded)[written < 24].all())


def test_rewards_of_the_shipped_prm_find_a_changed_number() -> None:
    """On problems that training never drew; the PRM sees the problem and the steps alone."""
    draw = random.Random(5)
    difficulty = DIFFICULTIES[1]
    problems = list(worked_problems(difficulty.task, 60, 40_000_000, difficulty.options))
    written = [(problem, changed_solution(problem, draw)) for problem in problems]
    rewards = [
        (reward, label)
        for problem, steps in written
        for reward, label in zip(
            last_rewards(problem.question, steps), step_labels(steps, problem), strict=True
        )
    ]
    right = sorted(reward for reward, label in rewards if label)
    wrong = sorted(reward for reward, label in rewards if not label)
    pairs = [a > b for a in right for b in wrong]
    assert sum(pairs) > 0.95 * len(pairs)


def last_rewards(question: str, steps: list[str]) -> list[float]:
    """Rewards at the separators, as the model card of Qwen2.5-Math-PRM computes them."""
    prm = Qwen2ForProcessRewardModel.from_pretrained(PRM.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(PRM.folder)
    system = PRM_FAMILIES["qwen2.5-math-prm"].system_prompt
    chat = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt + "".join(step + "<extra_0>" for step in steps), return_tensors="pt")
    rewards = prm(ids["input_ids"]).softmax(-1)[0, :, 1]
    separator = tokenizer.convert_tokens_to_ids("<extra_0>")
    return list(rewards[ids["input_ids"][0] == separator].tolist())
