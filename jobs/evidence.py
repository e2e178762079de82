"""What finished runs tell about every search, problem by problem: accuracy, cost, and probes.

Invariant: a policy's evidence is complete. Every search has been run on every problem that is in
it, so that all searches are compared on the same problems; the others are counted and left out.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from jobs.costs import COSTS, costs_at, model_parameters, problem_costs
from jobs.curves import PASS, SOLUTION_COLUMNS, Search, accuracy_at, solutions_by_problem
from jobs.difficulty import FEATURES, Samples, probe_features, samples_independently, samples_of
from jobs.results import load_record, load_table, table_parts
from jobs.routes import PROBE_STRATEGY, FittedRun, Route
from jobs.storage import Storage, Where, folder_to_read
from search.config import WIDTH_TEMPERATURE, is_uneven, variant_of
from search.errors import RecipeError
from search.rewards import Reduction
from search.schemas import UNITS
from search.strategies import subtree_count
from search.subsampling import group_grid
from search.votes import Floats, Integers, Vote

# The columns that name a search: those of a route that tables have, and the policy.
_NAMES = [each.name for each in fields(Route)]
SEARCH_KEY = ("policy", *(name for name in _NAMES if name in UNITS.names))


@dataclass(frozen=True, slots=True)
class Probes:
    """Q probes of k samples, cut out of the samples of P problems.

    features (Q, FEATURES); problem (Q,): which problem each is of; rest (Q,): the share of that
    problem's other samples that are right, which a probe cannot have looked at.
    """

    features: Floats
    problem: Integers
    rest: Floats

    @property
    def weight(self) -> Floats:
        """(Q,): 1 in all for each problem."""
        return np.asarray(1.0 / np.bincount(self.problem)[self.problem])

    def by_problem(self, values: Floats) -> Floats:
        """(P,): of each problem the mean over its probes of values (Q,)."""
        return np.bincount(self.problem, self.weight * values).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One policy with one PRM: R searches over P problems.

    accuracy (R, P): expected correctness; costs (R, P, COSTS): of the whole search; rest
    (R, P, COSTS): what it adds to a probe that has been paid; probe_costs (P, COSTS);
    pass_at_1 (P,): as measured. Parameters are 0 where the units do not tell.
    """

    policy: str
    prm: str
    parameters: float
    prm_parameters: float
    probe: int
    problem_ids: tuple[str, ...]
    left_out: int
    routes: tuple[Route, ...]
    accuracy: Floats
    costs: Floats
    probe_costs: Floats
    pass_at_1: Floats
    probes: Probes

    @property
    def rest(self) -> Floats:
        """The probe's samples are the first ones of best_of_n; other searches add their whole
        cost."""
        shares = [
            1.0 - self.probe / route.n if route.reuses(self.probe) else 1.0 for route in self.routes
        ]
        return np.asarray(self.costs * np.array(shares)[:, None, None])


@dataclass(frozen=True, slots=True)
class Learned:
    """All that was read of the runs; `texts`: of each problem id."""

    runs: list[FittedRun]
    texts: dict[str, str]
    policies: list[Evidence]


@dataclass(frozen=True, slots=True)
class _Finding:
    """One route over one problem, read off a search of `searched_n`."""

    searched_n: int
    accuracy: float
    costs: Floats


@dataclass(slots=True)
class _Pile:
    """One policy with one PRM while runs are read. `samples`: by problem and strategy."""

    parameters: tuple[float, float] = (0.0, 0.0)
    findings: defaultdict[Route, dict[str, _Finding]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    samples: defaultdict[str, dict[str, Samples]] = field(default_factory=lambda: defaultdict(dict))

    def add_finding(self, route: Route, problem_id: str, finding: _Finding) -> None:
        """Of several searches that give a point the widest counts, which averages over most."""
        held = self.findings[route].get(problem_id)
        if held is None or finding.searched_n > held.searched_n:
            self.findings[route][problem_id] = finding

    def add_samples(self, strategy: str, problem_id: str, samples: Samples) -> None:
        """Smaller searches of a strategy hold the same samples as the largest."""
        held = self.samples[problem_id].get(strategy)
        if held is None or len(samples) > len(held):
            self.samples[problem_id][strategy] = samples


def gather(folders: Sequence[Where], probe: int, budgets: Iterable[float]) -> Learned:
    """Reads run folders; raises StorageError for what is no run, RecipeError for too little.

    probe: k, the samples of a probe. budgets: in solutions, to have searches of just that size.
    """
    piles: dict[tuple[str, str], _Pile] = {}
    texts: dict[str, str] = {}
    runs: list[FittedRun] = []
    for folder in map(folder_to_read, folders):
        record = load_record(folder, "run_id", "recipe", "recipe_digest", "seeds")
        runs.append(FittedRun(run_id=record["run_id"], recipe_digest=record["recipe_digest"]))
        _add_texts(texts, folder)
        _add_run(piles, folder, record, probe, list(budgets))
    evidence = [_evidence(*name, pile, probe) for name, pile in sorted(piles.items())]
    if not evidence:
        raise RecipeError(
            f"{folder_to_read(folders[0])} has no solutions: give runs whose searches succeeded"
        )
    return Learned(runs, texts, evidence)


def _add_texts(texts: dict[str, str], folder: Storage) -> None:
    problems = load_table(folder, "problems")
    searched = problems.filter(pc.is_null(problems["error"]))
    columns = (searched[name].to_pylist() for name in ("problem_id", "text"))
    for name, text in zip(*columns, strict=True):
        if texts.setdefault(name, text) != text:
            raise RecipeError(
                f"the problem {name!r} of {folder} is another one in an earlier run: "
                "fit runs over the same data"
            )


def _add_run(
    piles: dict[tuple[str, str], _Pile],
    folder: Storage,
    record: dict[str, Any],
    probe: int,
    budgets: list[float],
) -> None:
    run = _Run.of(folder, record)
    for part in table_parts(folder, "solutions", SOLUTION_COLUMNS):
        for search, problem_id, rows in solutions_by_problem(part):
            if is_uneven(search.variant):
                continue
            pile = piles.setdefault((search.policy, run.prm), _Pile())
            pile.parameters = max(pile.parameters, run.sizes(search.policy))
            if samples_independently(search.strategy) and not search.variant:
                pile.add_samples(search.strategy, problem_id, samples_of(rows))
            ks = groups_to_read(search, probe, budgets)
            values = accuracy_at(search, problem_id, rows, run.seed, ks)
            for route, finding in run.findings(search, problem_id, ks, values):
                pile.add_finding(route, problem_id, finding)


def groups_to_read(search: Search, probe: int, budgets: Iterable[float]) -> list[int]:
    """Groups at which a search is read: powers of two, the steps halfway between them, and what
    a budget in solutions leaves with and without a probe."""
    total = subtree_count(search.strategy, search.n, search.branching)
    powers, each = group_grid(total), search.n // total
    sizes = [*(k * each for k in powers), *budgets]
    halfway = [(low + high) // 2 for low, high in pairwise(powers)]
    whole = [int(size) // each for size in (*sizes, probe)]
    rest = [(int(size) - probe) // each for size in sizes]
    return sorted({k for k in (*powers, *halfway, *whole, *rest) if 0 < k <= total})


@dataclass(frozen=True, slots=True)
class _Run:
    """What is needed of a run beside its solutions."""

    prm: str
    seed: int
    reductions: dict[tuple[Any, ...], Reduction]
    parameters: dict[str, tuple[float, float]]
    costs: dict[tuple[Any, ...], Floats]

    @classmethod
    def of(cls, folder: Storage, record: dict[str, Any]) -> "_Run":
        units, recipe = load_table(folder, "units"), record["recipe"]
        sizes = {name: model_parameters(units, name) for name in set(units["policy"].to_pylist())}
        parameters = {name: policy for name, (policy, _) in sizes.items()}
        model = (recipe.get("prm") or {}).get("model", "")
        costs = problem_costs(units, SEARCH_KEY, parameters)
        return cls(
            Path(model).name, record["seeds"].get("run", 0), _reductions(recipe), sizes, costs
        )

    def sizes(self, policy: str) -> tuple[float, float]:
        return self.parameters.get(policy, (0.0, 0.0))

    def findings(
        self, search: Search, problem_id: str, ks: list[int], values: Floats
    ) -> Iterable[tuple[Route, _Finding]]:
        """Each route of a search over one problem; none if what it cost is not known."""
        spent = self.costs.get((*(getattr(search, name) for name in SEARCH_KEY), problem_id))
        if spent is None or spent[0] <= 0.0:
            return
        groups = subtree_count(search.strategy, search.n, search.branching)
        for k, row in zip(ks, values, strict=True):
            for (reduction, vote), value in zip(search.cells, row, strict=True):
                route = self._route(search, k * search.n // groups, reduction, vote)
                if route and not np.isnan(value):
                    costs = costs_at(spent, route.n, route.splits)
                    yield route, _Finding(search.n, float(value), costs)

    def _route(self, search: Search, n: int, reduction: str, vote: str) -> Route | None:
        """A cell of a curve as a route; coverage is none, and a majority is one cell, not four."""
        if vote == PASS or (vote == Vote.MAJORITY and reduction not in ("none", Reduction.LAST)):
            return None
        named = {name: getattr(search, name) for name in SEARCH_KEY if name != "policy"}
        place = (search.policy, search.strategy, search.n, search.branching, search.variant)
        scored = None if vote == Vote.MAJORITY else Reduction(reduction)
        kept_by = self.reductions.get(place, Reduction.LAST)
        shape = {"reduction": kept_by, "vote": Vote(vote), "vote_reduction": scored}
        return Route(**named | {"n": n} | shape)


def _reductions(recipe: dict[str, Any]) -> dict[tuple[Any, ...], Reduction]:
    """By which reduction each search kept candidates: only the recipe says."""
    return {
        (policy["name"], *name): Reduction(search.get("reduction") or Reduction.LAST)
        for search in recipe.get("searches", [])
        if "n" in search and not (search.get("stop") or search.get("allocation"))
        for policy in recipe.get("policies", [])
        if not search.get("policies") or policy["name"] in search["policies"]
        for name in _names(search)
    }


def _names(search: dict[str, Any]) -> Iterable[tuple[Any, ...]]:
    """What tables call the searches of an entry; one of an older run may lack settings."""
    variant = variant_of(
        search.get("compat"),
        tuple(search.get("compat_options") or ()),
        search.get("lookahead") or 0,
        search.get("score_every") or 1,
        search.get("width_temperature") or WIDTH_TEMPERATURE,
        spending="",
    )
    return ((search["strategy"], n, search.get("branching") or 1, variant) for n in search["n"])


def _evidence(policy: str, prm: str, pile: _Pile, probe: int) -> Evidence:
    problems = _complete(policy, pile, probe)
    routes = sorted(pile.findings, key=_order)
    table = [[pile.findings[route][name] for name in problems] for route in routes]
    costs = np.array([[found.costs for found in row] for row in table])
    pooled = [_correct(pile.samples[name].values()) for name in problems]
    return Evidence(
        policy=policy,
        prm=prm,
        parameters=pile.parameters[0],
        prm_parameters=pile.parameters[1],
        probe=probe,
        problem_ids=tuple(problems),
        left_out=len(_all_problems(pile)) - len(problems),
        routes=tuple(routes),
        accuracy=np.array([[found.accuracy for found in row] for row in table]),
        costs=costs,
        probe_costs=costs[_probe_place(routes, probe)].reshape(len(problems), len(COSTS)),
        pass_at_1=np.array([correct.mean() for correct in pooled]),
        probes=_probes([pile.samples[name] for name in problems], probe),
    )


def _order(route: Route) -> tuple[str, ...]:
    return tuple(f"{getattr(route, name) or '':>12}" for name in _NAMES)


def _all_problems(pile: _Pile) -> set[str]:
    return {name for found in pile.findings.values() for name in found}


def _complete(policy: str, pile: _Pile, probe: int) -> list[str]:
    """The problems that every search has been run on, with enough samples for two probes."""
    least, sampled = 2 * probe, [of.get(PROBE_STRATEGY, ()) for of in pile.samples.values()]
    most = max(map(len, sampled), default=0)
    if most < least:
        raise RecipeError(
            f"policy {policy}: a probe of {probe} needs {PROBE_STRATEGY} with n={least} or "
            f"more, not {most}: run that too, or take a smaller probe"
        )
    enough = {name for name, of in pile.samples.items() if len(of.get(PROBE_STRATEGY, ())) >= least}
    shared = enough.intersection(*(found.keys() for found in pile.findings.values()))
    if not shared:
        raise RecipeError(
            f"policy {policy}: no problem was searched by all of its searches: "
            "give runs over the same problems"
        )
    return sorted(shared)


def _probe_place(routes: Sequence[Route], probe: int) -> int:
    """Where the search is that is nothing but the probe."""
    return next(
        place
        for place, route in enumerate(routes)
        if route.strategy == PROBE_STRATEGY and route.n == probe
    )


def _correct(parts: Iterable[Samples]) -> Floats:
    return np.concatenate([samples.correct for samples in parts]).astype(np.float64)


def _probes(samples: Sequence[dict[str, Samples]], probe: int) -> Probes:
    """Each problem's best_of_n samples, cut into as many probes as they hold."""
    features, problem, rest = [], [], []
    for place, of_problem in enumerate(samples):
        drawn, correct = of_problem[PROBE_STRATEGY], _correct(of_problem.values()).sum()
        outside = sum(map(len, of_problem.values())) - probe
        for start in range(0, len(drawn) - probe + 1, probe):
            part = slice(start, start + probe)
            features.append(probe_features(drawn.answer_class[part], drawn.score[part]))
            rest.append((correct - drawn.correct[part].sum()) / outside)
            problem.append(place)
    shaped = np.array(features, dtype=np.float64).reshape(-1, len(FEATURES))
    return Probes(shaped, np.array(problem, dtype=np.int64), np.array(rest, dtype=np.float64))
