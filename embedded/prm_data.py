"""What the PRM learns to judge: solutions of training problems, right and wrong ones.

A tenth comes from each policy, so that it sees the mistakes it will have to find; the rest are
worked solutions in which one number is changed and the rest follows from it.
Labels come from the worked derivation of a *training* problem; at search time there is none.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from embedded.tasks import (
    STEP_DELIMITER,
    WorkedProblem,
    evaluate,
    training_problems,
)

SAMPLING_BATCH = 500
MAX_NEW_TOKENS = 160
JudgedSolution = tuple[WorkedProblem, list[str]]


def solutions_to_judge(
    folders: list[Path], count: int, stream: int, seed: int
) -> Iterator[JudgedSolution]:
    """`count` solutions: a tenth from each policy, the others with a changed number."""
    problems, part = training_problems(count, stream), count // 10
    torch.manual_seed(seed)
    for place, folder in enumerate(folders):
        yield from _sampled(folder, problems[place * part : (place + 1) * part])
    draw = random.Random(seed)
    for problem in problems[len(folders) * part :]:
        yield problem, changed_solution(problem, draw)


def changed_solution(problem: WorkedProblem, draw: random.Random) -> list[str]:
    """The worked solution, or (four times in five) one with a mistake that is carried on."""
    if draw.random() < 0.2:
        return list(problem.steps)
    place = draw.randrange(len(problem.steps))
    head, result = _split_result(problem.steps[place])
    wrong = _changed_number(result, draw)
    steps = [*problem.steps[:place], head + wrong + ("}." if head.endswith("{") else "")]
    return steps + _carried_on(problem.steps[place + 1 :], result, wrong)


def _split_result(step: str) -> tuple[str, str]:
    """A step up to its result, and the result."""
    found = re.search(r"(-?\d+)(\}\.)?$", step)
    if found is None:
        raise ValueError(f"a worked step without a result: {step!r}")
    return step[: found.start()], found.group(1)


def _changed_number(number: str, draw: random.Random) -> str:
    """Another number near it: one digit changed, or off by one, ten or a hundred."""
    value = int(number)
    nudged = value + draw.choice([-1, 1]) * draw.choice([1, 1, 2, 10, 10, 20, 100])
    return str(nudged if nudged != value else value + 1)


def _carried_on(steps: tuple[str, ...], right: str, wrong: str) -> list[str]:
    """Later steps recomputed where they build on the number that was changed."""
    carried = []
    for step in steps:
        if step.endswith("}."):
            carried.append(step.replace(f"{{{right}}}", f"{{{wrong}}}"))
            continue
        label, _, line = step.partition(": ")
        left, right_before = line.partition("=")[::2]
        expression = _with_number(left, right, wrong)
        right, wrong = right_before, str(evaluate(expression))
        carried.append(f"{label}: {expression}={wrong}")
    return carried


def _with_number(expression: str, right: str, wrong: str) -> str:
    """The expression with the changed number where the right one stands as an operand."""
    pattern = rf"(?<!\d){re.escape(right)}(?!\d)"
    return re.sub(pattern, wrong, expression, count=1)


def _sampled(folder: Path, problems: list[WorkedProblem]) -> Iterator[JudgedSolution]:
    """One solution a problem from a policy, at temperature 1."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    for start in range(0, len(problems), SAMPLING_BATCH):
        batch = problems[start : start + SAMPLING_BATCH]
        chats = [[{"role": "user", "content": problem.question}] for problem in batch]
        prompts = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**prompts, do_sample=True, top_k=0, max_new_tokens=MAX_NEW_TOKENS)
        answers = written[:, prompts["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        for problem, text in zip(batch, texts, strict=True):
            steps = [step for step in text.split(STEP_DELIMITER) if step.strip()]
            yield problem, steps
