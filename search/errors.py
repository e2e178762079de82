"""Errors named by the border they cross. Each message is one line that says what to change.

All take exactly one string, so that they survive pickling between processes.
"""

LONGEST_LINE = 2000


class BranchwiseError(Exception):
    """Base of every error that is meant for the reader of a run, not for its developer."""


class RecipeError(BranchwiseError):
    """The recipe or its data cannot work; nothing was started."""


class PolicyError(BranchwiseError):
    """The policy gave something that cannot be a step."""


class PRMError(BranchwiseError):
    """The PRM gave something that cannot be a reward."""


class StorageError(BranchwiseError):
    """A run folder or table cannot be read or written."""


class StillRunningError(StorageError):
    """Another process is running what was asked for; it is left alone."""


class RunEndedError(StorageError):
    """The run that was named has ended already; nothing was started."""


class ClusterError(BranchwiseError):
    """The Ray cluster or a Serve deployment did not do what was asked."""


class EngineLostError(ClusterError):
    """An engine died or fell silent; another replica, or this one restarted, can answer."""


def one_line(text: object) -> str:
    """Words from outside as one line that a terminal can show; cut where it would be endless."""
    flat = " ".join(str(text).split())
    if len(flat) > LONGEST_LINE:
        flat = f"{flat[:LONGEST_LINE]}..."
    return flat if flat.isprintable() else "".join(map(_shown, flat))


def _shown(character: str) -> str:
    """A control character or half a character pair as its escape, so that it does nothing."""
    return character if character.isprintable() else ascii(character)[1:-1]


def first_cause(error: BaseException) -> BaseException:
    """The first real error inside the groups that task groups raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
