"""The fault matrix: each fault strikes a DVTS run with N = 64 on a cluster of three nodes.

`python -m benchmarks.faults [--only "node lost" ...]`: for each fault how soon lost work was taken
up again, what was redone, and whether the tables equal those of an undisturbed run.
`--soak SECONDS` lets faults strike at random, one after the other, until the time is over.
"""

import argparse
import itertools
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.faults.kinds import FAULTS, Fault, may_mount
from benchmarks.faults.measure import Outcome, disturbed, undisturbed
from benchmarks.faults.soak import Round, soak_round
from benchmarks.faults.world import Size, world

LASTS_S = 60.0
SIZE = Size()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--lasts", type=float, default=LASTS_S, help="seconds of passing faults")
    parser.add_argument("--markdown", action="store_true", help="the table as in the docs")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of faults at random")
    parser.add_argument("--seed", type=int, default=0, help="of the random schedule")
    options = parser.parse_args(arguments)
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a throw-away cluster
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as name:
        if options.soak:
            print_soak(list(_soaked(Path(name), options, console)), console)
            return
        found = []
        for each in _matrix(Path(name), _possible(options.only, console), options.lasts):
            console.print(f"{each.fault}: {'equal' if each.is_equal else each.log}")
            found.append(each)
        print_matrix(found, console, options.markdown)


def _matrix(folder: Path, faults: Sequence[Fault], lasts_s: float) -> Iterator[Outcome]:
    with world() as three_nodes:
        plain = undisturbed(three_nodes, folder / "plain", SIZE)
        for number, fault in enumerate(faults):
            yield disturbed(three_nodes, folder / str(number), SIZE, fault, plain, lasts_s)


def _possible(names: Sequence[str], console: Console) -> list[Fault]:
    """The faults with these names that this user can make."""
    wanted = [fault for fault in FAULTS if fault.name in names]
    for fault in wanted:
        if fault.needs_mount and not may_mount():
            console.print(f"{fault.name}: left out, this user may not mount a file system")
    return [fault for fault in wanted if not fault.needs_mount or may_mount()]


def _soaked(folder: Path, options: argparse.Namespace, console: Console) -> Iterator[Round]:
    """Rounds until the time is over, each told when it ends."""
    until = time.monotonic() + options.soak
    faults = [fault for fault in _possible(options.only, console) if not fault.needs_mount]
    with world() as three_nodes:
        plain = undisturbed(three_nodes, folder / "plain", SIZE)
        for number in itertools.count():
            place = folder / str(number)
            found = soak_round(three_nodes, place, SIZE, faults, plain, options.seed + number)
            shutil.rmtree(place)
            console.print(f"round {number}: {found}")
            yield found
            if time.monotonic() > until:
                return


def print_matrix(found: Sequence[Outcome], console: Console, markdown: bool) -> None:
    """A row for each fault."""
    heads = (
        "fault",
        "lost work asked again after (s)",
        "units redone",
        "policy tokens redone",
        "PRM tokens redone",
        "time, undisturbed = 1",
        "equal",
    )
    if markdown:
        for row in (heads, ["---"] * len(heads), *map(_row, found)):
            print(f"| {' | '.join(row)} |")
        return
    table = Table(*heads)
    for each in found:
        table.add_row(*_row(each))
    console.print(table)


def print_soak(rounds: Sequence[Round], console: Console) -> None:
    """All rounds in one line, and a line for each kind of fault."""
    struck = Counter(name for each in rounds for name in each.struck)
    equal = sum(each.outcome.is_equal for each in rounds)
    console.print(f"{len(rounds)} runs, {struck.total()} faults, {equal} runs equal")
    for name, count in struck.most_common():
        console.print(f"  {name}: {count}")


def _row(each: Outcome) -> tuple[str, ...]:
    return (
        each.fault,
        " to ".join(dict.fromkeys(f"{s:.1f}" for s in each.after_s)) or "nothing lost",
        str(each.units_redone),
        f"{each.policy.tokens_share:.1%}",
        f"{each.prm.tokens_share:.1%}",
        f"{each.times:.2f}",
        "yes" if each.is_equal else f"NO: {', '.join(each.unequal)}",
    )


if __name__ == "__main__":
    main()
