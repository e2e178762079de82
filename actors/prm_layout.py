"""A problem and its steps as the token ids a PRM reads, in pieces that end where rewards stand.

Invariants: the reward of a step is read at the last token of its piece; the pieces of a path
are the first pieces of every path that goes on from it, so nothing is computed twice; a layout
in which a reward would stand at the wrong token, or nowhere, raises PRMError.

Steps lose the white space around them, their delimiter included, and whatever reads like a
separator: published layouts have neither. A step that is then empty is left out, and a path
that ends in one has the reward of the step before it; a path of nothing else is one empty step.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError

from actors.engines.loading import is_text, render_prompt
from actors.prm_families import PRMFamily, family_of, scores_empty_step
from actors.spec import ModelSpec
from search.errors import PRMError, RecipeError
from search.protocols import PRMPath

# A step is laid out again with every step after it, and a header with every step.
TEXTS_KEPT = 65_536
# Texts tokenised as one, as long as a solution each: the nodes that searches go on from.
LAYOUTS_KEPT = 8192
DELIMITER = "\n\n"
PROBE = PRMPath("1 + 1", ("1 + 1 = 2", "2"))

Tokens = tuple[int, ...]
# The texts that end in a separator and belong to one step: one, but in search-and-learn's rule.
Unit = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LaidOut:
    """The tokens of a path: its header, and then each step's.

    The last step's reward is read at the last token of the last piece. `new_tokens` are those
    of the path's new steps alone.
    """

    pieces: tuple[Tokens, ...]
    new_tokens: int

    @property
    def ids(self) -> list[int]:
        """All tokens of the path."""
        return [token for piece in self.pieces for token in piece]


@dataclass(frozen=True, slots=True)
class _Whole:
    """A path tokenised as one text: all its tokens, and where each step ends."""

    ids: "array[int]"
    ends: tuple[int, ...]


class PRMLayout:
    """Lays out paths for one PRM; raises RecipeError if its tokenizer is not of its family."""

    def __init__(self, spec: ModelSpec, tokenizer: Any) -> None:
        self._spec, self._tokenizer = spec, tokenizer
        self._family = family_of(spec)
        self._compat = scores_empty_step(spec, self._family)
        self._ids = lru_cache(TEXTS_KEPT)(self._tokenized)
        self._header = lru_cache(TEXTS_KEPT)(self._render_header)
        self._start_ids = lru_cache(LAYOUTS_KEPT)(self._tokenize_start)
        self._known: OrderedDict[tuple[str, tuple[Unit, ...]], _Whole] = OrderedDict()
        self._is_whole = self._family.whole or self._family.layout == "turns"
        self._separator_id = self._checked_separator()
        self._pair = self._checked_pair()
        self._try_out()

    @property
    def family(self) -> PRMFamily:
        return self._family

    @property
    def token_pair(self) -> tuple[int, int]:
        """The tokens whose logits are compared, good and bad."""
        return self._pair

    def lay_out(self, path: PRMPath) -> LaidOut:
        """The path in pieces; raises PRMError if a reward would not stand where it must."""
        if not (is_text(path.problem) and all(map(is_text, path.steps))):
            raise PRMError("the problem or a step is not valid Unicode text")
        if self._compat:
            units, tail = self._units_as_search_and_learn(path)
        else:
            units, tail = self._units(path.steps), []
        lay_out = self._as_one_text if self._is_whole else self._piece_by_piece
        pieces = lay_out(path.problem, [*units, *tail])
        new = self._new_units(path)
        return LaidOut(pieces, sum(map(len, pieces[len(units) + 1 - new :])) if new else 0)

    def _new_units(self, path: PRMPath) -> int:
        """Of the path's new steps those that have a piece: an empty step has none, but alone."""
        if self._compat:
            return path.new_steps
        new = sum(bool(self._clean(step)) for step in path.steps[-path.new_steps :])
        return new or int(len(path.steps) == 1)

    def _units(self, steps: Sequence[str]) -> list[Unit]:
        cleaned = [text for text in map(self._clean, steps) if text]
        return [(text,) for text in cleaned or [""]]

    def _clean(self, step: str) -> str:
        return self._without_separator(step.strip()).strip()

    def _units_as_search_and_learn(self, path: PRMPath) -> tuple[list[Unit], list[Unit]]:
        """Its texts are split at delimiters, so one that ends in a delimiter has an empty end.

        A separator of white space is its delimiter: then each line of a step is one.
        """
        separator = self._family.separator
        delimiter = separator if separator.isspace() else DELIMITER
        steps, units = _with_delimiters(path), []
        for step in steps:
            texts = step.removesuffix(delimiter).split(delimiter)
            units.append(tuple(map(self._without_separator, texts)))
        return units, [("",)] if steps[-1].endswith(delimiter) else []

    def _without_separator(self, text: str) -> str:
        """What is left can have become a separator, so it is looked at again."""
        marker = self._family.separator.strip() or self._family.separator
        while marker and marker in text:
            text = text.replace(marker, self._family.separator_inside)
        return text

    # Tokenised piece by piece: the separator is one token, whatever stands beside it.

    def _piece_by_piece(self, problem: str, units: Sequence[Unit]) -> tuple[Tokens, ...]:
        pieces, before = [self._ids(self._header(problem))], ""
        for unit in units:
            piece: list[int] = []
            for text in unit:
                piece += [*self._ids(before + text), self._separator_id]
                before = self._family.between
            pieces.append(tuple(piece))
        return tuple(pieces)

    def _render_header(self, problem: str) -> str:
        text = self._problem_text(problem)
        if self._family.layout == "plain":
            return text
        return render_prompt(self._tokenizer, self._spec.system_prompt, text)

    def _problem_text(self, problem: str) -> str:
        text = self._family.problem.replace("{bos}", self._tokenizer.bos_token or "")
        return text.replace("{problem}", problem)

    def _tokenized(self, text: str) -> Tokens:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    # Tokenised as one text: each path's tokens must begin with those of the path before it.

    def _as_one_text(self, problem: str, units: Sequence[Unit]) -> tuple[Tokens, ...]:
        problem = self._without_separator(problem)
        whole = self._whole(problem, tuple(units))
        # All first steps of a problem share it, but for a token that melts into the step.
        header = _common(self._start_ids(problem), whole.ids[: whole.ends[0] - 1])
        bounds = pairwise((0, header, *whole.ends))
        return tuple(tuple(whole.ids[start:stop]) for start, stop in bounds)

    def _whole(self, problem: str, units: tuple[Unit, ...]) -> _Whole:
        """The path's tokens, made from those of the longest path before it that is known."""
        known = len(units)
        while known and (problem, units[:known]) not in self._known:
            known -= 1
        whole = self._known[problem, units[:known]] if known else _Whole(array("i"), ())
        for end in range(known + 1, len(units) + 1):
            whole = self._continued(whole, problem, units[:end])
            self._known[problem, units[:end]] = whole
        self._known.move_to_end((problem, units))
        while len(self._known) > LAYOUTS_KEPT:
            self._known.popitem(last=False)
        return whole

    def _continued(self, before: _Whole, problem: str, units: tuple[Unit, ...]) -> _Whole:
        texts = [text for unit in units for text in unit]
        written = self._as_turns if self._in_turns else self._joined
        ids = array("i", self._with_first_token(written(problem, texts)))
        self._check_end(before, ids, len(units), len(texts))
        return _Whole(ids, (*before.ends, len(ids)))

    def _tokenize_start(self, problem: str) -> Tokens:
        """What a path without a step would begin with."""
        text = self._as_turns(problem, [""]) if self._in_turns else self._render_header(problem)
        return self._with_first_token(text.rstrip())

    def _with_first_token(self, text: str) -> Tokens:
        """A chat template writes it itself; in plain text it is the tokenizer's to add."""
        add = self._family.layout == "plain"
        return tuple(self._tokenizer(text, add_special_tokens=add)["input_ids"])

    @property
    def _in_turns(self) -> bool:
        return self._family.layout == "turns"

    def _joined(self, problem: str, texts: Sequence[str]) -> str:
        family, header = self._family, self._render_header(problem)
        if not texts[0]:
            header = header.rstrip(" ")  # two spaces can be one token
        return header + family.between.join(text + family.separator for text in texts)

    def _as_turns(self, problem: str, texts: Sequence[str]) -> str:
        prompt = self._spec.system_prompt
        chat = [{"role": "system", "content": prompt}] if prompt else []
        first = self._problem_text(problem)
        for place, text in enumerate(texts):
            chat.append({"role": "user", "content": text if place else first + text})
            chat.append({"role": "assistant", "content": self._family.good})
        text = self._tokenizer.apply_chat_template(
            chat[:-1], add_generation_prompt=True, tokenize=False
        )
        return str(text)

    def _check_end(self, before: _Whole, ids: "array[int]", steps: int, separators: int) -> None:
        """The last step ends in a token of its own, and leaves what was there as it is."""
        found = separators if self._in_turns else ids.count(self._separator_id)
        if found != separators:
            raise self._misfit(found, separators)
        if not self._stands(before, ids):
            raise self._misfit(steps - 1, steps)

    def _misfit(self, found: int, steps: int) -> PRMError:
        apart = "turns" if self._in_turns else repr(self._family.separator)
        return PRMError(
            f"the layout yields {found} rewards for {steps} steps of a solution: the PRM's "
            f"tokenizer does not keep {apart} apart; check prm.family"
        )

    def _stands(self, before: _Whole, ids: "array[int]") -> bool:
        """Whether rewards are where they must be: at separators, or before good answers."""
        start = len(before.ids)
        if ids[:start] != before.ids or start == len(ids):
            return False
        if self._in_turns:
            return not start or ids[start] == self._pair[0]
        return ids[-1] == self._separator_id

    # What the tokenizer must have.

    def _checked_separator(self) -> int:
        separator = self._family.separator
        if self._in_turns:
            return -1
        if self._is_whole:  # its token depends on what stands before it
            return self._last_id(separator, before="1")
        if len(self._ids(separator)) != 1:
            raise self._not_of_family(separator)
        return self._last_id(separator)

    def _checked_pair(self) -> tuple[int, int]:
        family = self._family
        if family.reading != "token_pair":
            return -1, -1
        pair = self._last_id(family.good), self._last_id(family.bad)
        if pair[0] == pair[1]:
            raise self._not_of_family(family.bad)
        return pair

    def _try_out(self) -> None:
        try:
            self.lay_out(PROBE)
        except (PRMError, ValueError, TemplateError) as error:
            raise RecipeError(
                f"{self._spec.model!r} cannot be laid out as {self._spec.family!r}: {error}; "
                "change prm.family"
            ) from error

    def _last_id(self, text: str, before: str = "") -> int:
        """A token by its text, which its tokenizer may write with a sign for a space."""
        ids = self._ids(before + text)
        if not ids or ids[-1] == self._tokenizer.unk_token_id:
            raise self._not_of_family(text)
        if text.strip() and str(self._tokenizer.decode([ids[-1]])).strip() != text.strip():
            raise self._not_of_family(text)
        return ids[-1]

    def _not_of_family(self, token: str) -> RecipeError:
        return RecipeError(
            f"{self._spec.model!r} has no token {token!r}: it is not of the family "
            f"{self._spec.family!r}; change prm.family"
        )


def _with_delimiters(path: PRMPath) -> list[str]:
    """The steps as the policy wrote them: a step that another one follows ended in it."""
    *before, last = (step.removesuffix(DELIMITER) for step in path.steps)
    unfinished = path.unfinished or path.steps[-1].endswith(DELIMITER)
    return [*(step + DELIMITER for step in before), last + DELIMITER * unfinished]


def too_long(tokens: int, context: int) -> PRMError:
    """What a solution beyond the PRM's context is answered with."""
    return PRMError(
        f"a solution of {tokens} PRM tokens does not fit its context of {context}: "
        "lower limits.max_solution_tokens"
    )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
