"""From the start of the demo to its first finished work unit, and to the end of a short run.

`python -m benchmarks.startup [--against CHECKOUT]`: the demo's recipe with three problems, each run
a process of its own, in turns with another checkout if one is given (it runs with this Python and
its libraries). Everything is installed and has been run once before, so it is compiled.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RECIPE = "jobs/recipes/demo.yaml"
HERE = Path(__file__).resolve().parent.parent
FIRST = "first unit after"
GOAL = 0.5
SMALL = tuple(f"data.{place}.size=1" for place in range(3))
# No models are loaded, so what is timed is not the demo.
TOY = (*SMALL, "prm.engine=fake", *(f"policies.{place}.engine=fake" for place in range(3)))


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks.results import result, write_results, writes_results

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--against", metavar="CHECKOUT", type=Path, help="another revision's folder"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="engines without models")
    writes_results(parser)
    options = parser.parse_args(arguments)
    checkouts = [HERE] if options.against is None else [HERE, options.against.resolve()]
    sizes = TOY if options.toy else SMALL
    for checkout in checkouts:
        measured(checkout, sizes)
    runs = [[measured(each, sizes) for each in checkouts] for _ in range(options.repetitions)]
    table = Table("checkout", "first unit, s", "spread", "whole run, s", "spread")
    for name, timed in zip(("this", "other"), zip(*runs, strict=True), strict=False):
        first, whole = zip(*timed, strict=True)
        table.add_row(name, *_cells(first), *_cells(whole))
    Console(width=100).print(table)
    if options.against is not None:
        what = "demo to its first unit, over that of the version before"
        ratios = [run[0][0] / run[1][0] for run in runs]
        results = [result(what, GOAL, ratios, "imports of torch and transformers", at_most=True)]
        write_results(options.to, "python -m benchmarks.startup --against CHECKOUT", results)


def _cells(seconds: Sequence[float]) -> tuple[str, str]:
    return f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f} to {max(seconds):.1f}"


def measured(checkout: Path, sizes: Sequence[str]) -> tuple[float, float]:
    """Seconds to the first unit and to the end of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "run", RECIPE, *sizes, f"runs_folder={folder}"]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        started = time.time()
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=True
        )
        whole_s = time.time() - started
    line = next(each for each in done.stdout.splitlines() if each.startswith(FIRST))
    return float(line.removeprefix(FIRST)) - started, whole_s


def run_with_a_clock() -> None:
    """In a process of its own: the command line, which says when its first unit came back."""
    # The folder of this file comes first, and the checkout that is measured has one of that name.
    sys.path.pop(0)
    from jobs import cli, driver

    timed_module: Any = driver
    run_units = timed_module.run_units

    async def timed(*arguments: Any) -> Any:
        first = True
        async for done in run_units(*arguments):
            if first:
                print(FIRST, time.time(), flush=True)
            first = False
            yield done

    timed_module.run_units = timed
    cli.main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run_with_a_clock()
    else:
        main()
