"""Where a history is written: a figure and a CSV file, on this machine or on a store."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.history import Night, ended
from jobs.history_figure import draw_history
from jobs.history_text import as_csv
from jobs.storage import Where, storage_at
from search.errors import StorageError

NAMES = ("history.png", "history.svg", "history.csv")


def write_history(nights: Sequence[Night], to: Where) -> list[str]:
    """Where its files are; raises StorageError. Without a night that has ended there are none."""
    if not ended(nights):
        return []
    folder = storage_at(to)
    with tempfile.TemporaryDirectory(prefix="branchwise-") as drawn:
        png, svg, table = (Path(drawn) / name for name in NAMES)
        try:
            draw_history(nights, png, svg)
            table.write_text(as_csv(nights), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot draw the history: {error.strerror}") from error
        for path in (png, svg, table):
            folder.write(path.name, path.read_bytes())
    return [folder.called(name) for name in NAMES]
