"""Arithmetic problems from reasoning-gym, worked out step by step.

reasoning-gym writes the problems and their answers; this module only adds the worked
solution that the policies learn to write. Invariant: the derivation of a problem is
unique, so a step is correct exactly when it equals the worked step at its place.

Training draws item seeds from `TRAIN_SEED` upwards; every recipe and test uses seeds below
`TRAIN_SEED` (item i of a reasoning-gym data set with seed s is drawn from seed s + i).
"""

import operator
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import reasoning_gym

TRAIN_SEED = 100_000_000
STEP_DELIMITER = "\n\n"
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


@dataclass(frozen=True, slots=True)
class TaskMix:
    """One reasoning-gym task at one difficulty, and its share of the training set."""

    task: str
    share: float
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkedProblem:
    """A problem with the steps of its one derivation (no delimiters) and its answer."""

    question: str
    answer: str
    steps: tuple[str, ...]


TRAINING_MIX = (
    TaskMix("chain_sum", 0.25, {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}),
    TaskMix("chain_sum", 0.45, {"min_terms": 3, "max_terms": 5, "min_digits": 2, "max_digits": 2}),
    TaskMix("chain_sum", 0.15, {"min_terms": 3, "max_terms": 6, "min_digits": 3, "max_digits": 3}),
    TaskMix("products", 0.15, {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
)


def training_problems(count: int, stream: int) -> list[WorkedProblem]:
    """`count` shuffled training problems; `stream` selects a disjoint range of seeds."""
    problems: list[WorkedProblem] = []
    for place, mix in enumerate(TRAINING_MIX):
        seed = TRAIN_SEED + (stream * len(TRAINING_MIX) + place) * 10_000_000
        problems += worked_problems(mix.task, round(count * mix.share), seed, mix.options)
    random.Random(stream).shuffle(problems)
    return problems


def worked_problems(
    task: str, count: int, seed: int, options: dict[str, Any]
) -> Iterator[WorkedProblem]:
    """`count` problems of a reasoning-gym task with their worked solutions."""
    data_set = reasoning_gym.create_dataset(task, seed=seed, size=count, **options)
    for entry in data_set:
        steps = worked_steps(entry["metadata"]["expression"])
        yield WorkedProblem(entry["question"], entry["answer"], tuple(steps))


def worked_steps(expression: str) -> list[str]:
    """The numbered steps of a chain of `+`/`-`, or of a product of two numbers."""
    words = expression.split()
    lines = _product_lines(words) if "*" in words else _chain_lines(words)
    answer = lines[-1].rpartition("=")[2]
    lines.append(f"The answer is \\boxed{{{answer}}}.")
    return [f"Step {number}: {line}" for number, line in enumerate(lines, 1)]


def _chain_lines(words: list[str]) -> list[str]:
    """Adds one term of the chain a line, from the left."""
    total, lines = int(words[0]), []
    for symbol, term in zip(words[1::2], words[2::2], strict=True):
        before, total = total, _OPERATORS[symbol](total, int(term))
        lines.append(f"{before}{symbol}{term}={total}")
    return lines


def _product_lines(words: list[str]) -> list[str]:
    """Splits the second factor (or the first, if the second has one digit) into tens and ones."""
    left, right = int(words[0]), int(words[2])
    if left < 10 and right < 10:
        return [f"{left}*{right}={left * right}"]
    if right >= 10:
        parts = [(left, right // 10 * 10), (left, right % 10)]
    else:
        parts = [(left // 10 * 10, right), (left % 10, right)]
    lines = [f"{a}*{b}={a * b}" for a, b in parts]
    first, second = (a * b for a, b in parts)
    return [*lines, f"{first}+{second}={first + second}"]


def evaluate(expression: str) -> int:
    """The value of two whole numbers (the first may be negative) with one operator between."""
    found = re.fullmatch(r"(-?\d+)([-+*])(-?\d+)", expression)
    if found is None:
        raise ValueError(f"not a sum, difference or product of two numbers: {expression!r}")
    return _OPERATORS[found.group(2)](int(found.group(1)), int(found.group(3)))


def step_labels(steps: list[str], worked: WorkedProblem) -> list[bool]:
    """For each step, whether it and all steps before it are right."""
    labels, right = [], True
    for place, step in enumerate(steps):
        right = right and place < len(worked.steps) and step.strip() == worked.steps[place]
        labels.append(right)
    return labels
