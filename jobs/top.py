"""A run that goes on, seen from another terminal: what its folder says, drawn again and again.

Invariant: it only reads, so that it may look at any run and be ended at any time.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.progress_file import RunProgress, Searching, read_progress
from jobs.results import load_record
from jobs.storage import Storage, folder_to_read
from jobs.writer_lease import Process, living_writer
from search.errors import StorageError, one_line

INTERVAL_S, STORE_INTERVAL_S = 2.0, 10.0
BAR_CHARACTERS = 24


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run folder says of its run. finished_at is empty until the end."""

    run_id: str
    finished_at: str
    writer: Process | None
    progress: RunProgress | None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return bool(self.finished_at) or self.writer is None


def look(folder: Storage) -> Seen:
    """Raises StorageError if there is no run, or it cannot be read."""
    record = load_record(folder, "run_id", "finished_at")
    if record["finished_at"]:
        return Seen(record["run_id"], record["finished_at"], None, None)
    return Seen(record["run_id"], "", living_writer(folder), read_progress(folder))


def show_run(where: str, once: bool, console: Console) -> bool:
    """Draws a run until it ends; returns whether it goes on or has ended well.

    once: only as it is now, which is also all there is without a terminal.
    """
    folder = folder_to_read(where)
    seen = look(folder)
    if not seen.is_over and (once or not console.is_terminal):
        console.print(drawn(seen))
        return True
    if not seen.is_over:
        seen = _drawn_until_over(folder, seen, console)
    console.print(_end(seen, folder), soft_wrap=True, highlight=False)
    return bool(seen.finished_at)


def _drawn_until_over(folder: Storage, seen: Seen, console: Console) -> Seen:
    interval_s = INTERVAL_S if folder.here else STORE_INTERVAL_S
    with Live(drawn(seen), console=console, auto_refresh=False, transient=True) as live:
        while not seen.is_over:
            time.sleep(interval_s)
            note = ""
            try:
                seen = look(folder)
            except StorageError as error:  # a store that is away, or a folder that was removed
                note = one_line(error)
            live.update(drawn(seen, note), refresh=True)
    return seen


def _end(seen: Seen, folder: Storage) -> str:
    if seen.finished_at:
        return f"{seen.run_id} has ended at {seen.finished_at}: branchwise report {folder}"
    heard, done = "", ""
    if seen.progress is not None:
        heard = f", last heard of at {seen.progress.written_at}"
        searching = seen.progress.searching
        done = f" with {_problems(searching)} of {seen.progress.policy}" if searching else ""
    return (
        f"{seen.run_id} is not running: its driver has ended or was killed before the end"
        f"{done}{heard}; run its recipe again to go on"
    )


def drawn(seen: Seen, note: str = "") -> Group:
    """What is known of a run that goes on."""
    progress = seen.progress
    if progress is None:
        return Group(Text(f"{seen.run_id}: it has begun and says nothing yet"))
    head = Text.assemble((seen.run_id, "bold"), f"  {progress.doing}{_ladder(progress)}")
    rows = Table.grid(padding=(0, 2))
    if progress.searching is not None:
        _add_searching(rows, progress.searching)
    if progress.replicas:
        rows.add_row("replicas", _replicas(progress))
    rows.add_row("heard of", f"{_since(progress.written_at)} ago, of {seen.writer}")
    return Group(head, rows, *([Text(note, "red")] if note else []))


def _ladder(progress: RunProgress) -> str:
    if not progress.policy or progress.policy in progress.doing:
        return f", for {_duration(progress.seconds)}"
    place = f" ({progress.place} of {len(progress.policies)})"
    return f" with {progress.policy}{place}, for {_duration(progress.seconds)}"


def _add_searching(rows: Table, seen: Searching) -> None:
    tally, flight = seen.tally, seen.in_flight
    bar = ProgressBar(total=max(1, seen.units), completed=tally.units, width=BAR_CHARACTERS)
    left = "" if seen.left_s is None else f", about {_duration(seen.left_s)} left"
    rows.add_row("problems", _problems(seen))
    rows.add_row("units", _beside(bar, f"{tally.units}/{seen.units}{left}"))
    rows.add_row("solutions", f"{tally.answers_graded} graded, {tally.accuracy:.1%} correct")
    rows.add_row("in flight", _in_flight(seen))
    rows.add_row("last news", f"{_duration(seen.silent_s)} before the driver was heard of")
    rows.add_row("policy", f"{seen.policy_tokens_s:,.0f} tokens/s{_cached(seen)}")
    rows.add_row("PRM", f"{seen.prm_tokens_s:,.0f} tokens/s{_over_minimal(seen)}")
    faults = f"{tally.units_failed} units failed, {flight.units_again} run again"
    rows.add_row("faults", f"{faults}, {flight.tasks_lost} tasks lost")


def _beside(bar: ProgressBar, text: str) -> Table:
    row = Table.grid(padding=(0, 2))
    row.add_row(bar, text)
    return row


def _problems(seen: Searching) -> str:
    return f"{seen.tally.problems_done}/{seen.problems} problems"


def _in_flight(seen: Searching) -> str:
    flight = seen.in_flight
    text = (
        f"{flight.units_in_flight} units in {flight.tasks_in_flight} tasks, "
        f"{flight.solutions_in_flight} of {flight.solutions_admitted} solutions"
    )
    return f"{text}, {flight.units_waiting} to be run again" if flight.units_waiting else text


def _cached(seen: Searching) -> str:
    tally = seen.tally
    if not tally.prefix_tokens:
        return ""
    return f", {1 - tally.computed_prefix_tokens / tally.prefix_tokens:.1%} of prefixes cached"


def _over_minimal(seen: Searching) -> str:
    tally = seen.tally
    if not tally.prm_minimal_tokens:
        return ""
    return f", {tally.prm_computed_tokens / tally.prm_minimal_tokens:.2f} of the fewest possible"


def _replicas(progress: RunProgress) -> str:
    ready = (f"{name} {ready}/{wanted}" for name, (ready, wanted) in progress.replicas.items())
    return ", ".join(ready) + " ready"


def _since(written_at: str) -> str:
    try:
        age: Any = datetime.now(UTC) - datetime.fromisoformat(written_at)
    except (ValueError, TypeError):
        return "some time"
    return _duration(age.total_seconds())


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
