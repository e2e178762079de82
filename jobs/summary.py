"""What a run prints when it ends: accuracy at each N, and where everything is."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jobs.curves import Point
from jobs.driver import RunOutcome
from jobs.reported_run import Choice, ReportedRun, baseline, read_run
from search.rewards import Reduction
from search.votes import Vote

SHOWN = Choice(Reduction.LAST, Vote.WEIGHTED)


def print_summary(outcome: RunOutcome, files: Sequence[str], console: Console) -> None:
    """A table of accuracy in per cent, the paths, and what failed. files: the report's."""
    run = read_run(outcome.place)
    console.print(samples_table(run) if run.samples_only else accuracy_table(run))
    single = baseline(run)
    if single:
        console.print(f"single sample of {single.policy}: {single.expected_correct:.1%}")
    for label, path in (("run", outcome.place), ("report", files[0]), ("curve", files[1])):
        console.print(f"{label:7}{path}", soft_wrap=True, highlight=False)
    if outcome.failed_units or outcome.bad_problems:
        console.print(
            f"incomplete: {outcome.failed_units} work units failed and {outcome.bad_problems} "
            "problems were left out; the report and the tables units and problems say why"
        )


def accuracy_table(run: ReportedRun) -> Table:
    """A row for each policy and rule, a column for each N."""
    points = [point for point in run.points if SHOWN.shows(point)]
    sizes = sorted({point.n for point in points})
    title = f"accuracy in % at N ({SHOWN.reduction}, {SHOWN.vote})"
    table = Table("policy", "strategy", *map(str, sizes), title=title)
    lines = dict.fromkeys((point.policy, point.rule) for point in points)
    for line in sorted(lines, key=lambda line: (run.policies.index(line[0]), line[1])):
        by_size = {p.n: p for p in points if (p.policy, p.rule) == line}
        table.add_row(*line, *(_cell(by_size.get(size)) for size in sizes))
    return table


def samples_table(run: ReportedRun) -> Table:
    """A row for each policy that was sampled: pass@1 with its interval, cons@k, pass@k, cuts."""
    title = "independent samples, in %"
    heads = ("policy", "samples", "pass@1", "95 % interval", "cons@k", "pass@k", "cut off")
    table = Table(*heads, "tokens", title=title)
    for row in run.sampled:
        shares = [row["pass_at_1"], row["cons_at_k"], row["cut_share"]]
        single, cons, cut = (f"{100 * share:.1f}" for share in shares)
        any_correct = f"{100 * row['pass_at_k'][-1]:.1f}" if row["ks"] else ""
        known = row["ci_low"] is not None
        interval = f"{100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f}" if known else ""
        cells = (single, interval, cons, any_correct, cut, f"{row['mean_tokens']:.0f}")
        table.add_row(row["policy"], str(row["n"]), *cells)
    return table


def _cell(point: Point | None) -> str:
    return f"{100 * point.expected_correct:.1f}" if point else ""
