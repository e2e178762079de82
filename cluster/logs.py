"""Log lines that say what they are about: the run, and of it the policy, the unit, the problem.

With `BRANCHWISE_LOG=json` each line is a JSON object with these as keys of their own; else they
stand in brackets behind the words. Invariant: a line of a task or a coroutine carries what the
`about` around it says, and what the line itself is given (`extra=about_units(...)`) goes before.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TypeAlias

from search.errors import RecipeError
from search.partition import WorkUnit

FIELDS = ("run", "policy", "unit", "problem")
FORMAT = "BRANCHWISE_LOG"
FORMATS = ("text", "json")
# Of a task with many units a line names as many; as JSON it names all.
SHOWN = 3

Named: TypeAlias = "str | Sequence[str]"
_AROUND: ContextVar[Mapping[str, Named]] = ContextVar("around", default={})  # noqa: B039


@contextlib.contextmanager
def about(**fields: Named) -> Iterator[None]:
    """What all lines inside are about."""
    token = _AROUND.set({**_AROUND.get(), **fields})
    try:
        yield
    finally:
        _AROUND.reset(token)


def about_units(*units: WorkUnit) -> dict[str, Named]:
    """The `extra` of a line about one unit or several."""
    problems = tuple(dict.fromkeys(unit.problem.problem_id for unit in units))
    return {"unit": tuple(unit.unit_id for unit in units), "problem": problems}


def set_up_logging() -> None:
    """Lines of this process go to stderr in the format that is asked for; raises RecipeError."""
    asked = os.environ.get(FORMAT) or FORMATS[0]
    if asked not in FORMATS:
        raise RecipeError(f"{FORMAT}={asked} is no format of log lines: set text or json")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if asked == "json" else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("branchwise").setLevel(logging.INFO)
    # It says that something is tried again, not what: those who try say that themselves.
    logging.getLogger("stamina").setLevel(logging.ERROR)


class TextLines(logging.Formatter):
    """The time, the words, and what they are about."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        named = ", ".join(f"{name} {_shown(value)}" for name, value in _fields(record).items())
        line = super().formatMessage(record)
        return f"{line} [{named}]" if named else line


class JsonLines(logging.Formatter):
    """One object a line: time in UTC, level, logger, message, what it is about, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage()}
        fields = {name: _only(value) for name, value in _fields(record).items()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line | fields)


def _fields(record: logging.LogRecord) -> dict[str, Named]:
    around = _AROUND.get()
    found = {name: getattr(record, name, around.get(name, "")) for name in FIELDS}
    return {name: value for name, value in found.items() if value}


def _shown(value: Named) -> str:
    if isinstance(value, str):
        return value
    more = (f"{len(value) - SHOWN} more",) if len(value) > SHOWN else ()
    return " + ".join((*value[:SHOWN], *more))


def _only(value: Named) -> Named:
    """One name as it is, several as a list."""
    return value[0] if len(value) == 1 and not isinstance(value, str) else value
