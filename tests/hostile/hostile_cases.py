"""Hostile cases as data: what is wrong, and the words of the one line that must say so.

A text in a case is a string, or a list of parts: strings, and `{repeat: text, times: n}`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
BORDERS = (
    "recipes",
    "problems",
    "parquet",
    "outputs",
    "completions",
    "answers",
    "scorers",
    "rewards",
    "folders",
    "artifacts",
)


@dataclass(frozen=True)
class Case:
    """One hostile thing at one border."""

    name: str
    values: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def text(self, key: str) -> str:
        return spelled(self.values[key])

    def content(self) -> bytes:
        """What a file holds: `hex` as it stands, else `file` as UTF-8."""
        if "hex" in self.values:
            return bytes.fromhex(spelled(self.values["hex"]))
        return spelled(self.values["file"]).encode("utf-8", "surrogatepass")


def spelled(text: Any) -> str:
    """A text written out."""
    if isinstance(text, str):
        return text
    if isinstance(text, dict):
        return str(text["repeat"]) * int(text["times"])
    return "".join(map(spelled, text))


def load(border: str) -> list[Case]:
    """The cases of a border, in their file's order."""
    rows = yaml.safe_load((HERE / f"{border}.yaml").read_text(encoding="utf-8"))
    return [Case(row.pop("name"), row) for row in rows]


def each(border: str, *keys: str) -> Any:
    """A test for each case; keys: only those that have one of them."""
    chosen = [case for case in load(border) if not keys or any(key in case.values for key in keys)]
    return pytest.mark.parametrize("case", chosen, ids=[case.name for case in chosen])


def changed(document: Any, changes: dict[str, Any]) -> Any:
    """A document with the values at these dotted paths replaced; a list may be one longer."""
    for path, value in changes.items():
        *keys, last = path.split(".")
        place = document
        for key in keys:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if isinstance(place, list):
            place[int(last) : int(last) + 1] = [value]
        else:
            place[last] = value
    return document


def assert_one_line(message: str, words: str) -> None:
    """A message for a terminal: one line, nothing that cannot be shown, and the words in it."""
    assert words in message, f"{words!r} is not in {message[:500]!r}"
    assert message.isprintable(), f"not one printable line: {message[:500]!r}"
    assert len(message) < 3000
