"""`branchwise fit`: from full runs on a development split to routes, and what they are worth.

Invariant: every accuracy under `validation` is that of problems whose routes, predictor and rivals
were learned without them (two folds), and every arm has the same budget for a problem, from which
a probe is paid where one is needed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jobs.best_routes import best_route, best_routes, routed, weighted_interval
from jobs.budgets import Budget, Measure
from jobs.costs import COSTS
from jobs.difficulty import Difficulty, Thresholds
from jobs.evidence import Evidence, Learned, gather
from jobs.intervals import clustered_interval
from jobs.liu2025 import BRANCHING, liu2025_strategy
from jobs.pass_predictor import Predictor, fit_predictor
from jobs.routes import (
    PROBE_STRATEGY,
    VERSION,
    Arm,
    Artifact,
    Estimate,
    LearnedPolicy,
    LearnedPredictor,
    LearnedRoute,
    MeanCost,
    Validation,
    hashed,
)
from jobs.storage import Where
from search.errors import RecipeError
from search.rewards import Reduction
from search.seeds import derive_seed
from search.strategies import STRATEGIES
from search.votes import Flags, Floats, Vote

MIN_FOR_FOLDS = 20
DIGITS = 3
# Arms of the comparison. A probe is paid by the first alone: the others need none.
ROUTED, SINGLE, ORACLE, STATIC = "routed", "best_single", "oracle_difficulty", "liu2025"


@dataclass(frozen=True, slots=True)
class FitSettings:
    """What a fit depends on beside its runs. budgets: none for powers of two of what was run."""

    probe: int = 4
    thresholds: Thresholds = field(default_factory=Thresholds)
    seed: int = 0
    standard_errors: float = 1.0
    budgets: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        if self.probe < 1:
            raise RecipeError(f"a probe of {self.probe} samples tells nothing: take 1 or more")
        if not 0.0 <= self.standard_errors < np.inf:
            raise RecipeError(f"{self.standard_errors:g} standard errors: take 0 or more")


def fit(folders: Sequence[Where], settings: FitSettings) -> Artifact:
    """Learns from finished runs; raises RecipeError or StorageError where that cannot be done."""
    wanted = [b.amount for b in settings.budgets if b.measure is Measure.SOLUTIONS]
    learned = gather(folders, settings.probe, wanted)
    policies = tuple(fit_policy(evidence, settings) for evidence in learned.policies)
    ids = _problem_ids(learned)
    return Artifact(
        version=VERSION,
        probe=settings.probe,
        thresholds=settings.thresholds,
        seed=settings.seed,
        standard_errors=settings.standard_errors,
        runs=tuple(learned.runs),
        problem_ids=tuple(map(hashed, ids)),
        problem_texts=tuple(sorted({hashed(learned.texts.get(name, "")) for name in ids})),
        policies=policies,
    )


def _problem_ids(learned: Learned) -> list[str]:
    return sorted({name for evidence in learned.policies for name in evidence.problem_ids})


def fit_policy(evidence: Evidence, settings: FitSettings) -> LearnedPolicy:
    """Routes and predictor from all problems, and their worth from two folds."""
    if len(evidence.problem_ids) < MIN_FOR_FOLDS:
        raise RecipeError(
            f"policy {evidence.policy}: {len(evidence.problem_ids)} problems that all searches "
            f"were run on are too few: {MIN_FOR_FOLDS} or more are needed"
        )
    budgets = _budgets(evidence, settings.budgets)
    folds = _folds(evidence.problem_ids, settings.seed)
    lessons = [_Lesson.of(evidence, settings, ~fold) for fold in folds]
    whole = _Lesson.of(evidence, settings, np.ones(len(evidence.problem_ids), dtype=bool))
    return LearnedPolicy(
        policy=evidence.policy,
        prm=evidence.prm,
        parameters=evidence.parameters,
        prm_parameters=evidence.prm_parameters,
        problems=len(evidence.problem_ids),
        left_out=evidence.left_out,
        probe_cost=_mean_cost(evidence.probe_costs),
        predictor=_learned_predictor(whole, lessons, folds),
        routes=tuple(row for budget in budgets for row in whole.rows(budget)),
        validation=tuple(_validated(lessons, folds, budget) for budget in budgets),
    )


def _budgets(evidence: Evidence, wanted: tuple[Budget, ...]) -> list[Budget]:
    """The budgets of every measure that is used, the price of a probe always the first."""
    prices = dict(zip(COSTS, evidence.probe_costs.mean(axis=0), strict=True))
    measures = [m for m in Measure if prices[m] > 0.0]
    for budget in wanted:
        if prices[budget.measure] <= 0.0:
            raise RecipeError(f"policy {evidence.policy}: its runs count no {budget.measure}")
        if budget.amount < prices[budget.measure]:
            price = Budget(prices[budget.measure], budget.measure)
            raise RecipeError(
                f"a budget of {budget} is too small to probe {evidence.policy}: "
                f"a probe of {evidence.probe} samples costs {price}"
            )
    if wanted:
        measures = [m for m in measures if m in {budget.measure for budget in wanted}]
    found = {m: {float(prices[m])} for m in measures}
    for budget in wanted or _sampled_budgets(evidence, measures):
        found[budget.measure].add(budget.amount)
    return [Budget(amount, m) for m in measures for amount in sorted(found[m])]


def _sampled_budgets(evidence: Evidence, measures: Iterable[Measure]) -> list[Budget]:
    """What twice, four times, ... the samples of a probe cost, as far as was run."""
    samples = {r.n: row for row, r in enumerate(evidence.routes) if r.strategy == PROBE_STRATEGY}
    doubled = [evidence.probe * 2**power for power in range(1, max(samples).bit_length())]
    rows = [samples[n] for n in doubled if n in samples]
    costs = evidence.costs[rows].mean(axis=1)
    return [Budget(_rounded_up(c[COSTS.index(m)]), m) for m in measures for c in costs]


def _rounded_up(amount: float) -> float:
    """To three digits, so that what it was made from is still within it; small numbers as they
    are."""
    if amount == int(amount) < 10_000:
        return amount
    unit = 10.0 ** (np.floor(np.log10(amount)) - (DIGITS - 1))
    return float(f"{np.ceil(amount / unit * (1.0 - 1e-9)) * unit:.{DIGITS}g}")


def _folds(problem_ids: Sequence[str], seed: int) -> list[Flags]:
    """Two halves, each by flags (P,): who is in which depends on seed and id alone."""
    order = np.argsort([derive_seed(seed, "fold", name) for name in problem_ids])
    second = np.zeros(len(problem_ids), dtype=bool)
    second[order[1::2]] = True
    return [~second, second]


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What some problems teach. `taught` (P,): which those are; `predicted` (bins, P): of every
    problem the share of its probes that fall into each bin, by the predictor learned here."""

    evidence: Evidence
    settings: FitSettings
    taught: Flags
    predictor: Predictor
    estimates: Floats
    predicted: Floats

    @classmethod
    def of(cls, evidence: Evidence, settings: FitSettings, taught: Flags) -> "_Lesson":
        probes = evidence.probes
        weight = np.where(taught[probes.problem], probes.weight, 0.0)
        predictor = fit_predictor(probes.features, probes.rest, weight)
        estimates = predictor.pass_at_1(probes.features)
        bins = settings.thresholds.bins_of(estimates).astype(np.float64)
        predicted = np.stack([probes.by_problem(row) for row in bins])
        return cls(evidence, settings, taught, predictor, estimates, predicted)

    @property
    def measured(self) -> Floats:
        """(bins, P): which bin each problem is in."""
        bins = self.settings.thresholds.bins_of(self.evidence.pass_at_1)
        return np.asarray(bins.astype(np.float64))

    def routes(self, budget: Budget) -> list[int]:
        """Of each predicted bin the search for what a probe leaves of the budget."""
        place = COSTS.index(budget.measure)
        paid = self.evidence.probe_costs[self.taught, place].mean()
        rest, limit = self.evidence.rest[:, :, place], max(0.0, budget.amount - paid)
        errors, shares = self.settings.standard_errors, self.predicted * self.taught
        return best_routes(self.evidence.accuracy, rest, shares, limit, errors)

    def rows(self, budget: Budget) -> list[LearnedRoute]:
        """The routes as they stand in the artifact."""
        rows = zip(Difficulty, self.routes(budget), self.predicted, strict=True)
        return [self._row(budget, bin_, route, share) for bin_, route, share in rows]

    def oracle(self, budget: Budget) -> list[int]:
        """Of each measured bin the search for the whole budget, with no regard to savings."""
        shares = self.measured * self.taught
        return best_routes(self.evidence.accuracy, self._costs(budget), shares, budget.amount, 0.0)

    def single(self, budget: Budget) -> list[int]:
        """The search that is best for all problems, with no regard to savings: a rival that
        saved would be too easily beaten."""
        everyone, costs = self.taught.astype(np.float64), self._costs(budget)
        best = best_route(self.evidence.accuracy, costs, everyone, budget.amount, 0.0)
        return [best] * len(Difficulty)

    def static(self, budget: Budget) -> list[int] | None:
        """The paper's search of each measured bin at the largest N within the budget; None if the
        policy's size is unknown or such a search was not run."""
        if self.evidence.parameters <= 0.0:
            return None
        chosen = [self._static(budget, bin_) for bin_ in Difficulty]
        return None if None in chosen else [row for row in chosen if row is not None]

    def _static(self, budget: Budget, difficulty: Difficulty) -> int | None:
        strategy = liu2025_strategy(self.evidence.parameters, difficulty)
        width = BRANCHING if STRATEGIES[strategy].branches else 1
        price = self._costs(budget)[:, self.taught].mean(axis=1)
        shape = (strategy, width, Reduction.LAST, Vote.WEIGHTED, Reduction.LAST)
        open_ = [
            (route.n, row)
            for row, route in enumerate(self.evidence.routes)
            if (route.strategy, route.branching, route.reduction, route.vote, route.vote_reduction)
            == shape
            and price[row] <= budget.amount * (1.0 + 1e-9)
        ]
        return max(open_)[1] if open_ else None

    def _costs(self, budget: Budget) -> Floats:
        return self.evidence.costs[:, :, COSTS.index(budget.measure)]

    def _row(
        self, budget: Budget, difficulty: Difficulty, route: int, share: Floats
    ) -> LearnedRoute:
        # A bin that no probe falls into is described by all problems.
        weights = share if share.sum() > 0.0 else np.ones(len(share))
        mean_cost = (weights / weights.sum()) @ self.evidence.rest[route]
        return LearnedRoute(
            measure=budget.measure,
            budget=budget.amount,
            difficulty=difficulty,
            route=self.evidence.routes[route],
            accuracy=_clipped(*weighted_interval(self.evidence.accuracy[route], weights), 0.0),
            cost=_mean_cost(mean_cost[None]),
            problems=round(float(share.sum()), 1),
        )


def _validated(lessons: Sequence[_Lesson], folds: Sequence[Flags], budget: Budget) -> Validation:
    """All arms at one budget, each problem by the lesson that it was not part of."""
    evidence = lessons[0].evidence
    tried: dict[str, tuple[Floats, Floats]] = {}
    for name, choose in _ARMS.items():
        found = [choose(lesson, budget) for lesson in lessons]
        if all(each is not None for each in found):
            tried[name] = _spent([each for each in found if each is not None], folds)
    tried[ROUTED] = (tried[ROUTED][0], tried[ROUTED][1] + evidence.probe_costs)
    ours = tried[ROUTED][0]
    return Validation(
        measure=budget.measure,
        budget=budget.amount,
        arms={
            name: Arm(accuracy=_mean_over_problems(values), cost=_mean_cost(costs))
            for name, (values, costs) in tried.items()
        },
        routed_minus={
            name: _mean_over_problems(ours - values, low=-1.0)
            for name, (values, _) in tried.items()
            if name != ROUTED
        },
    )


# Accuracy (P,) and cost (P, COSTS) of all problems, by what a lesson says of them.
_Outcome = tuple[Floats, Floats]


def _routed_arm(lesson: _Lesson, budget: Budget) -> _Outcome:
    return _outcome(lesson, lesson.evidence.rest, lesson.predicted, lesson.routes(budget))


def _single_arm(lesson: _Lesson, budget: Budget) -> _Outcome:
    return _outcome(lesson, lesson.evidence.costs, lesson.measured, lesson.single(budget))


def _oracle_arm(lesson: _Lesson, budget: Budget) -> _Outcome:
    return _outcome(lesson, lesson.evidence.costs, lesson.measured, lesson.oracle(budget))


def _static_arm(lesson: _Lesson, budget: Budget) -> _Outcome | None:
    routes = lesson.static(budget)
    if routes is None:
        return None
    return _outcome(lesson, lesson.evidence.costs, lesson.measured, routes)


_ARMS: dict[str, Callable[[_Lesson, Budget], _Outcome | None]] = {
    ROUTED: _routed_arm,
    SINGLE: _single_arm,
    ORACLE: _oracle_arm,
    STATIC: _static_arm,
}


def _outcome(lesson: _Lesson, costs: Floats, shares: Floats, routes: Sequence[int]) -> _Outcome:
    return routed(lesson.evidence.accuracy, shares, routes), routed(costs, shares, routes)


def _spent(outcomes: Sequence[_Outcome], folds: Sequence[Flags]) -> _Outcome:
    """Of each problem the outcome of the lesson whose fold it is in."""
    accuracy, costs = (np.zeros_like(part) for part in outcomes[0])
    for fold, (values, spent) in zip(folds, outcomes, strict=True):
        accuracy[fold], costs[fold] = values[fold], spent[fold]
    return accuracy, costs


def _learned_predictor(
    whole: _Lesson, lessons: Sequence[_Lesson], folds: Sequence[Flags]
) -> LearnedPredictor:
    """Coefficients from all problems, and errors of those learned without each problem."""
    probes, measured = whole.evidence.probes, whole.measured
    predicted, estimates = np.zeros_like(whole.predicted), np.zeros_like(whole.estimates)
    for fold, lesson in zip(folds, lessons, strict=True):
        predicted[:, fold] = lesson.predicted[:, fold]
        estimates = np.where(fold[probes.problem], lesson.estimates, estimates)
    confusion = measured @ predicted.T
    error = probes.by_problem(np.abs(estimates - probes.rest)).mean()
    names = list(Difficulty)
    return LearnedPredictor(
        intercept=round(whole.predictor.intercept, 6),
        weights={name: round(weight, 6) for name, weight in whole.predictor.weights.items()},
        confusion={
            row: dict(zip(names, np.round(counts, 1).tolist(), strict=True))
            for row, counts in zip(names, confusion, strict=True)
        },
        share_right=round(float(np.trace(confusion) / confusion.sum()), 4),
        share_right_without=round(float(measured.sum(axis=1).max() / confusion.sum()), 4),
        mean_error=round(float(error), 4),
    )


def _mean_over_problems(values: Floats, low: float = 0.0) -> Estimate:
    mean, below, above = clustered_interval(values)
    return _clipped(float(mean), float(below), float(above), low)


def _clipped(mean: float, low: float, high: float, least: float) -> Estimate:
    """Ends that no accuracy, or difference of two, can lie beyond; null where there is none."""
    if np.isnan(low):
        return Estimate(mean=round(mean, 4), low=None, high=None)
    below, above = (round(min(max(end, least), 1.0), 4) for end in (low, high))
    return Estimate(mean=round(mean, 4), low=below, high=above)


def _mean_cost(costs: Floats) -> MeanCost:
    """The mean over problems of (P, COSTS), to six digits."""
    means = (float(f"{value:.6g}") for value in costs.mean(axis=0))
    return MeanCost(**dict(zip(COSTS, means, strict=True)))
