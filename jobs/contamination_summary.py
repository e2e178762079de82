"""What `branchwise contamination` prints: the problems that were found, and how many were not."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.contamination import Finding, Overlap

SHOWN = 20


def print_overlaps(
    overlaps: Sequence[Overlap], notes: Sequence[str], n: int, threshold: float, console: Console
) -> None:
    """The problems with the largest overlap, a line of totals, and what was not read."""
    found = sorted((o for o in overlaps if o.shared), key=lambda o: -(o.overlap or 0.0))
    if found:
        console.print(_table(found[:SHOWN], n))
    if len(found) > SHOWN:
        console.print(f"and {len(found) - SHOWN} more: write them to a file with --to")
    counts = Counter(overlap.finding for overlap in overlaps)
    below = f", {counts[Finding.OVERLAP]} overlap by less" if threshold else ""
    console.print(
        f"{len(overlaps)} problems: {counts[Finding.CONTAMINATED]} contaminated (above "
        f"{threshold:g} of their {n}-grams){below}, {counts[Finding.CLEAN]} clean, "
        f"{counts[Finding.TOO_SHORT]} too short to say (fewer than {n} words)",
        soft_wrap=True,
        highlight=False,
    )
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)


def _table(overlaps: Sequence[Overlap], n: int) -> Table:
    table = Table("problem", f"{n}-grams", "shared", "overlap", "finding")
    table.add_column("first found at", overflow="fold")
    for o in overlaps:
        share = f"{o.overlap or 0.0:.1%}"
        place = f"{o.file}:{o.line}"
        cells = (str(o.ngrams), str(o.shared), share, o.finding, escape(place))
        table.add_row(escape(o.problem_id), *cells)
    return table
