"""The child's side of grading: reads answers with math-verify in a process that may be killed.

math-verify limits itself with SIGALRM, so it must run in a main thread; a child process has one
to give. Invariant: no function here evaluates the text of an answer itself, scorers that would are
kept from it (`jobs.grader_guard`), and what is known to stall a computer algebra system is refused
before math-verify sees it.
"""

import json
import logging
import re
import resource
import signal
import warnings
from contextlib import suppress
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from itertools import product
from multiprocessing.connection import Connection
from typing import Any, Protocol

from jobs.grader_guard import guard_scorers, install_refusals, without_side_effects
from search.seeds import derive_seed

MAX_ANSWER_CHARACTERS = 2000
MAX_NESTING = 50
MAX_MEMORY_BYTES = 4 * 2**30
READY = "ready"

_CLOSE, _OPEN, _POWER = r"[\s)}\]]*", r"[\s({\[+-]*", r"(?:\^|\*\*)"
_TOWER = re.compile(rf"\d{_CLOSE}{_POWER}{_OPEN}\d+{_CLOSE}{_POWER}{_OPEN}\d")
_HUGE = re.compile(rf"{_POWER}{_OPEN}\d{{6,}}|\d{{5,}}{_CLOSE}!")

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_PLAIN = re.compile(rf"([+-]?)({_DIGITS}(?:\.\d*)?|\.\d+)(?:/({_DIGITS}))?")
_FRACTION = re.compile(r"([+-]?)\\frac\{([+-]?\d+)\}\{(\d+)\}")
_HEXADECIMAL = re.compile(r"([+-]?)0[xX]([0-9A-Fa-f]+)")
_NOISE = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[,!;:]|\$")
# A blank between two letters or digits means something: "1 2" is not 12.
_BLANKS = re.compile(r"\s+")
_IDLE_BLANK = re.compile(r"(?<!\w) | (?!\w)")
# math-verify rounds to six decimals when one side is a decimal; further apart is never equal.
_ROUNDING = Fraction(1, 10**5)


class Verdict(StrEnum):
    """What grading says about one answer."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    PARSE_ERROR = "parse_error"
    TIMEOUT = "timeout"


class Checker(Protocol):
    """What a child can be asked; every call may be killed and asked again."""

    def parses(self, reference: str) -> bool:
        """Whether the reference is mathematics."""
        ...

    def verdict(self, reference: str, answer: str) -> Verdict:
        """Whether the answer is right."""
        ...

    def first_equal(self, answer: str, representatives: tuple[str, ...]) -> int:
        """The place of the first representative that means the same; -1 if none does."""
        ...

    def task_score(self, task: str, entry: str, answer: str) -> float | None:
        """The score of the data set's own scorer; `entry` is its row as JSON."""
        ...


def normalised(text: str) -> str:
    """The text without dollar signs, spacing and sizing commands and a final full stop."""
    text = text.replace("~", " ").replace("\\ ", " ")
    text = text.replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    single = _BLANKS.sub(" ", _NOISE.sub("", text))
    return _IDLE_BLANK.sub("", single).removesuffix(".")


def plain_number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal or simple fraction; None for anything else.

    Takes normalised text: `-1,000`, `0.5`, `1/2`, `\\frac{1}{2}`, `0xff` (which math-verify takes
    for 0 times x).
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None
    if match := _HEXADECIMAL.fullmatch(text):
        return Fraction(int("".join(match.groups()), 16))
    match = _FRACTION.fullmatch(text) or _PLAIN.fullmatch(text)
    if match is None:
        return None
    sign, above, below = match.groups(default="1")
    divisor = int(below.replace(",", ""))
    value = Fraction(above.replace(",", "").rstrip("."))
    return value / (-divisor if sign == "-" else divisor) if divisor else None


def hostile(text: str) -> bool:
    """Whether reading the text could take without end: length, nesting, powers of powers."""
    if len(text) > MAX_ANSWER_CHARACTERS or _TOWER.search(text) or _HUGE.search(text):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest > MAX_NESTING


def verdict_at_sight(reference: str, answer: str) -> Verdict | None:
    """The verdict where no algebra is needed; None where math-verify has to look."""
    right, given = normalised(reference), normalised(answer)
    if not given:
        return Verdict.NO_ANSWER
    if given == right:
        return Verdict.CORRECT
    if hostile(answer) or hostile(reference):
        return Verdict.PARSE_ERROR
    return _compare_numbers(plain_number(right), plain_number(given))


def _compare_numbers(right: Fraction | None, given: Fraction | None) -> Verdict | None:
    if right is None or given is None:
        return None
    if right == given:
        return Verdict.CORRECT
    whole = right.denominator == given.denominator == 1
    return Verdict.INCORRECT if whole or abs(right - given) > _ROUNDING else None


class MathChecker:
    """math-verify and the scorers of reasoning-gym; to be used in a main thread only."""

    def __init__(self) -> None:
        """Imports everything now, so that no import is counted against an answer."""
        import math_verify
        import reasoning_gym

        self._verify = math_verify.verify
        self._scorer = reasoning_gym.get_score_answer_fn
        guard_scorers(hostile)
        install_refusals()

    @without_side_effects()
    def parses(self, reference: str) -> bool:
        """Whether math-verify makes an expression of the reference, not only a string."""
        from math_verify.errors import TimeoutException

        with suppress(TimeoutException):
            return not hostile(reference) and _has_expression(_read(reference))
        return False

    @without_side_effects()
    def verdict(self, reference: str, answer: str) -> Verdict:
        """Gold first: math-verify is not symmetric."""
        from math_verify.errors import TimeoutException

        try:
            gold, given = _read(reference), _read(answer)
            if self._equal(gold, given):
                return Verdict.CORRECT
        except TimeoutException:
            return Verdict.TIMEOUT
        readable = _has_expression(gold) and _has_expression(given)
        return Verdict.INCORRECT if readable else Verdict.PARSE_ERROR

    @without_side_effects()
    def first_equal(self, answer: str, representatives: tuple[str, ...]) -> int:
        """Looks in both directions; a comparison that takes too long counts as different."""
        for place, other in enumerate(representatives):
            if self._same(answer, other):
                return place
        return -1

    @without_side_effects()
    def task_score(self, task: str, entry: str, answer: str) -> float | None:
        """None where reasoning-gym does not know the task."""
        with suppress(ValueError):
            return float(self._scorer(task)(answer, json.loads(entry)))
        return None

    def _same(self, one: str, other: str) -> bool:
        from math_verify.errors import TimeoutException

        with suppress(TimeoutException):
            if _clearly_differ(_value(one), _value(other)):
                return False
            a, b = _read(one), _read(other)
            return self._equal(a, b) or self._equal(b, a)
        return False

    def _equal(self, gold: list[Any], given: list[Any]) -> bool:
        """`verify` for each pair; unlike one call for all pairs it lets time-outs through."""
        return any(self._equal_pair(a, b) for a, b in product(gold, given))

    def _equal_pair(self, gold: Any, given: Any) -> bool:
        # math-verify raises whatever sympy does; it would count that as "not equal" too.
        with suppress(Exception):
            return bool(self._verify(gold, given, raise_on_error=True))
        return False


@lru_cache(maxsize=1024)
def _read(text: str) -> list[Any]:
    """What math-verify sees: expressions and, last, the text itself; empty if nothing.

    Bare LaTeX must be wrapped in dollar signs, or a tuple is read as its first number.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    with suppress(Exception):
        bare = text.strip().strip("$").strip()
        return list(parse(f"${bare}$", extraction_config=configs, raise_on_error=True))
    return []


@lru_cache(maxsize=4096)
def _value(text: str) -> complex | None:
    """A plain expression at one fixed point; None for equations, sets, per cents and the like.

    Two expressions with different values differ, which spares most comparisons the tens of
    milliseconds of a symbolic simplification.
    """
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    with suppress(TimeoutException, Exception):
        value: complex | None = timeout(timeout_seconds=1)(_evaluate)(_read(text))
        return None if "%" in text else value
    return None


def _evaluate(parsed: list[Any]) -> complex | None:
    from sympy import Expr, Rational

    expression = next((part for part in parsed if isinstance(part, Expr)), None)
    if expression is None:
        return None
    symbols = sorted(expression.free_symbols, key=str)
    point = {s: 1 + Rational(derive_seed(str(s)) % 9973, 9973) for s in symbols}
    return complex(expression.subs(point).evalf())


def _clearly_differ(one: complex | None, other: complex | None) -> bool:
    if one is None or other is None:
        return False
    return abs(one - other) > float(_ROUNDING) * max(1.0, abs(one), abs(other))


def _has_expression(parsed: list[Any]) -> bool:
    return any(not isinstance(part, str) for part in parsed)


def serve_questions(pipe: Connection, checker_type: type[Checker]) -> None:
    """The child's loop: (method, arguments) in, (answered, value) out, until the pipe closes."""
    _become_quiet()
    checker = checker_type()
    pipe.send(READY)
    # The parent's end closes when the parent dies, so no child outlives its run.
    with suppress(EOFError, BrokenPipeError):
        while True:
            method, arguments = pipe.recv()
            pipe.send(_answer(checker, method, arguments))


def _answer(checker: Checker, method: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    # An answer is foreign text: whatever it makes a library raise is said about that answer.
    try:
        return True, getattr(checker, method)(*arguments)
    except Exception as error:
        return False, repr(error)[:200]


def _become_quiet() -> None:
    # Ctrl-C reaches the whole terminal group, and Ray's job server sends SIGTERM to all processes
    # of a job, but ending a child is the parent's decision.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, resource.RLIM_INFINITY))
