"""One line of a JSONL file as a row of a data set.

Invariant: whatever stands in a line, a row comes back; what cannot be read says so in one line.
"""

import json
from dataclasses import dataclass
from typing import Any

from search.errors import one_line

_MAX_NESTING = 100


@dataclass(frozen=True, slots=True)
class Row:
    """A row as read: its columns, or why it could not be read. Rows count from 0."""

    number: int
    columns: dict[str, Any]
    error: str = ""


def parse_line(row: int, line_number: int, line: bytes) -> Row:
    """The row in one line of a JSONL file; lines count from 1."""
    try:
        columns = json.loads(
            line.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_twins,
        )
    except (ValueError, RecursionError) as error:
        return Row(row, {}, f"line {line_number} is not valid JSON: {one_line(error)}")
    if not isinstance(columns, dict):
        return Row(row, {}, f"line {line_number} is not a JSON object")
    if _nesting(columns) > _MAX_NESTING:
        return Row(row, {}, f"line {line_number} is nested more than {_MAX_NESTING} deep")
    return Row(row, columns)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON would take the last of equal names, such as the second of two answers."""
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in columns if names.count(name) > 1)
        raise ValueError(f"the name {twin!r} is there twice")
    return columns


def _nesting(value: Any) -> int:
    """How deep lists and objects stand in each other."""
    depth, level = 0, [value]
    while level:
        depth, inner = depth + 1, list[Any]()
        for part in level:
            if isinstance(part, dict | list):
                inner += part.values() if isinstance(part, dict) else part
        level = inner
    return depth
