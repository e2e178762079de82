"""What `branchwise fit` prints: how good the routes are, on problems that they never saw.

Invariant: every number comes from the artifact, so a report can be printed again from the file.
"""

from collections.abc import Iterator

from jobs.budgets import Measure
from jobs.difficulty import Difficulty
from jobs.reported_run import count_in_words
from jobs.routes import Artifact, Estimate, LearnedPolicy, Validation

COUNTING = (
    "Cost is the mean of a problem. Tokens: policy tokens sampled (discarded ones too), prompt and "
    "prefix tokens that missed the cache, PRM tokens. FLOPs: 2 x parameters x those tokens, policy "
    "and PRM each with its own. Paper FLOPs: 2 x policy parameters x generated tokens, the "
    "narrower count of arXiv 2502.06703. The cost of `routed` includes its probe."
)
ARMS = (
    "`routed`: probe, predict, route. `best_single`: one search for all problems, without a probe "
    "(floor). `oracle_difficulty`: routes by measured difficulty, without a probe (ceiling); both "
    "take the best mean and save nothing. "
    "`liu2025`: the paper's table by size and measured difficulty, without a probe. Two folds: "
    "every arm was chosen on the half that it is not tested on. Intervals: 95 %, by problem; "
    "differences are paired."
)


def fit_report(artifact: Artifact) -> str:
    """Markdown: predictor, comparison and routes of every policy."""
    lines = [
        "# Compute-optimal routes",
        "",
        f"Problems: {len(artifact.problem_ids)}. Runs: {len(artifact.runs)}. Samples of a probe: "
        f"{artifact.probe}. A route is a cheaper search than the best if that is behind by no more "
        f"than {artifact.standard_errors:g} times the standard error of the difference. {ARMS}",
        "",
        COUNTING,
    ]
    for policy in artifact.policies:
        lines += ["", *_chapter(policy, artifact)]
    return "\n".join(lines) + "\n"


def _chapter(policy: LearnedPolicy, artifact: Artifact) -> Iterator[str]:
    sizes = f"{_size(policy.parameters)} parameters"
    yield f"## {policy.policy} ({sizes}) with {policy.prm or 'no PRM'}"
    yield f"\n{policy.problems} problems; {policy.left_out} left out, not run on by every search."
    yield "\n### Difficulty from a probe\n"
    yield from _predictor(policy, artifact)
    yield "\n### Accuracy at equal budgets\n"
    yield from _comparison(policy)
    if "liu2025" not in policy.validation[0].arms and "liu2025" not in policy.validation[-1].arms:
        yield "\n`liu2025` is missing: the policy's size is unknown or its searches were not run."
    yield "\n### Routes\n"
    yield from _routes(policy)


def _size(parameters: float) -> str:
    return count_in_words(parameters) if parameters else "unknown"


def _predictor(policy: LearnedPolicy, artifact: Artifact) -> Iterator[str]:
    learned, limits = policy.predictor, artifact.thresholds
    yield (
        f"Easy: pass@1 from {100 * limits.easy:g} % on; hard: below {100 * limits.hard:g} %. "
        f"{100 * learned.share_right:.1f} % of the probes are in the right bin (always the "
        f"commonest bin: {100 * learned.share_right_without:.1f} %); pass@1 is off by "
        f"{100 * learned.mean_error:.1f} points on average.\n"
    )
    yield f"| measured \\ predicted | {' | '.join(Difficulty)} |"
    yield "|---" * (1 + len(Difficulty)) + "|"
    for row, counts in learned.confusion.items():
        yield f"| {row} | {' | '.join(f'{counts[column]:.1f}' for column in Difficulty)} |"
    weights = ", ".join(f"{name} {weight:+.2f}" for name, weight in learned.weights.items())
    yield f"\nLog-odds of pass@1: {learned.intercept:+.2f}; {weights}."


def _comparison(policy: LearnedPolicy) -> Iterator[str]:
    yield (
        "| budget | arm | accuracy in % | routed minus this | solutions | tokens | FLOPs "
        "| paper FLOPs |"
    )
    yield "|---" * 8 + "|"
    for row in policy.validation:
        yield from _arms(row)


def _arms(row: Validation) -> Iterator[str]:
    budget = f"{_amount(row.budget, row.measure)} {row.measure}"
    for name, arm in row.arms.items():
        ahead = _points(row.routed_minus.get(name))
        cost = arm.cost
        counts = map(count_in_words, (cost.solutions, cost.tokens, cost.flops, cost.paper_flops))
        yield f"| {budget} | {name} | {_percent(arm.accuracy)} | {ahead} | {' | '.join(counts)} |"


def _routes(policy: LearnedPolicy) -> Iterator[str]:
    yield "Accuracy here is that of the problems the routes were learned on, so it flatters.\n"
    yield "| budget | predicted | search | accuracy in % | adds to the probe | problems |"
    yield "|---" * 6 + "|"
    for row in policy.routes:
        cost = _amount(getattr(row.cost, str(row.measure)), row.measure)
        yield (
            f"| {_amount(row.budget, row.measure)} {row.measure} | {row.difficulty} | {row.route} "
            f"| {_percent(row.accuracy)} | {cost} | {row.problems:g} |"
        )


def _amount(amount: float, measure: Measure) -> str:
    return f"{amount:g}" if measure is Measure.SOLUTIONS else count_in_words(amount)


def _percent(value: Estimate) -> str:
    return f"{100 * value.mean:.1f}{_interval(value, '.1f')}"


def _points(value: Estimate | None) -> str:
    return "" if value is None else f"{100 * value.mean:+.1f}{_interval(value, '+.1f')}"


def _interval(value: Estimate, shape: str) -> str:
    if value.low is None or value.high is None:
        return ""
    return f" ({format(100 * value.low, shape)} to {format(100 * value.high, shape)})"
