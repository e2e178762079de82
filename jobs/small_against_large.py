"""Small policies with search against larger ones without: the cheapest search that keeps up.

Invariant: a search is compared with the single sample on the problems that both have, and it
keeps up only if its mean is not below; its interval says how sure that is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jobs.budget_curves import Budgets, Priced
from jobs.budgets import Measure
from jobs.reported_run import Comparison, ReportedRun, compared

# The mean of equal values differs from them in its last bits.
_SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Match:
    """One search of a smaller policy against one sample of a larger one.

    small: the cheapest point of the search's curve that is not below the larger policy's sample,
    or its best point if all are: then it does not keep up.
    """

    small: Priced
    large: Priced
    comparison: Comparison
    keeps_up: bool
    parameter_ratio: float | None

    def cost_ratio(self, measure: Measure) -> float:
        """The search's cost over the sample's."""
        return self.small.cost(measure) / self.large.cost(measure)

    @property
    def tokens_ratio(self) -> float:
        return self.cost_ratio(Measure.TOKENS)

    @property
    def flops_ratio(self) -> float:
        return self.cost_ratio(Measure.FLOPS)

    @property
    def paper_flops_ratio(self) -> float:
        return self.small.paper_flops / self.large.paper_flops


def matches(run: ReportedRun, budgets: Budgets) -> list[Match]:
    """Each policy's searches against each larger policy, in the run's order of policies."""
    singles = {each.point.policy: each for each in budgets.singles}
    order = {name: place for place, name in enumerate(run.policies)}
    return [
        match
        for line in _lines(budgets)
        for name in run.policies
        if name in singles and order[name] > order[line[0].point.policy]
        for match in _match(run, line, singles[name], budgets.measures[-1])
    ]


def _lines(budgets: Budgets) -> list[list[Priced]]:
    """The points of each policy, rule and branching."""
    found: dict[tuple[str, str, int], list[Priced]] = {}
    for each in budgets.lines:
        found.setdefault((each.point.policy, each.rule, each.point.branching), []).append(each)
    return list(found.values())


def _match(
    run: ReportedRun, line: Iterable[Priced], large: Priced, measure: Measure
) -> Iterator[Match]:
    """One, or none if the search and the sample share no problem."""
    ordered = sorted(line, key=lambda each: each.cost(measure))
    tried = [(each, compared(run, each.point, large.point)) for each in ordered]
    tried = [(each, found) for each, found in tried if found.difference == found.difference]
    if tried:
        first = next((pair for pair in tried if pair[1].difference >= -_SLACK), None)
        small, found = first or max(tried, key=lambda pair: pair[1].difference)
        yield Match(small, large, found, first is not None, _parameter_ratio(run, small, large))


def _parameter_ratio(run: ReportedRun, small: Priced, large: Priced) -> float | None:
    """The larger policy's parameters over the smaller one's; None where one is unknown."""
    sizes = [run.parameters.get(each.point.policy, 0.0) for each in (small, large)]
    return sizes[1] / sizes[0] if all(sizes) else None
