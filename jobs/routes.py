"""What `branchwise fit` learned, as a file, and the router that reads it while a run goes on.

Invariant: a file that `load_artifact` returns can route every policy that it names, whatever a
probe looks like and however little is left: each bin has a route that spends nothing more than
the probe. Nothing here looks at a verdict.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from jobs.budgets import Budget, Measure
from jobs.data import Section, did_you_mean
from jobs.difficulty import FEATURES, Difficulty, Thresholds, probe_features, samples_of
from jobs.pass_predictor import Predictor
from jobs.yaml_files import read_yaml
from search.errors import PolicyError, RecipeError, StorageError, one_line
from search.rewards import Reduction
from search.strategies import STRATEGIES
from search.votes import Vote

VERSION = 1
PROBE_STRATEGY = "best_of_n"
_HASH_BYTES = 8
_HEAD = """\
# Learned by `branchwise fit`; docs/compute-optimal.md says what each key means.
# Accuracies of routes are those of the problems they were learned on: too high. The ones under
# `validation` are of problems that the routes had not seen.
"""


@dataclass(frozen=True, slots=True)
class Route:
    """A search, and how its solutions become one answer. The one place that names a search.

    n: solutions of the search; with `best_of_n` the probe's samples are the first of them, so
    only the others are still to be written. reduction: by which the search keeps candidates;
    vote_reduction: of the scores that vote, null for a majority, which looks at none. variant:
    of the rule, as in the tables.
    """

    strategy: str
    n: int
    branching: int
    reduction: Reduction
    vote: Vote
    vote_reduction: Reduction | None = None
    variant: str = ""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def splits(self) -> bool:
        """Whether independent parts make up the search."""
        return STRATEGIES[self.strategy].splits

    def __str__(self) -> str:
        width = f", branching {self.branching}" if STRATEGIES[self.strategy].branches else ""
        score = f" {self.vote_reduction}" if self.vote_reduction else ""
        named = f"{self.strategy} {self.variant}".rstrip()
        return f"{named} N={self.n}{width},{score} {self.vote}"

    def reuses(self, probe: int) -> bool:
        """Whether the samples of a probe of k are the first of this search: equal seeds."""
        return self.strategy == PROBE_STRATEGY and not self.variant and self.n >= probe


class Estimate(Section):
    """Mean over problems with its 95 % interval."""

    mean: float
    low: float | None
    high: float | None


class MeanCost(Section):
    """Mean cost of a problem in every measure."""

    solutions: float
    tokens: float
    flops: float
    paper_flops: float


class LearnedRoute(Section):
    """The best search for problems that look like this, at this budget.

    cost: what it adds to the probe; problems: how many it was learned from, with their weights.
    """

    measure: Measure
    budget: float
    difficulty: Difficulty
    route: Route
    accuracy: Estimate
    cost: MeanCost
    problems: float

    @model_validator(mode="after")
    def _can_run(self) -> "LearnedRoute":
        if self.route.strategy not in STRATEGIES:
            hint = did_you_mean(self.route.strategy, list(STRATEGIES))
            raise ValueError(f"unknown strategy {self.route.strategy!r}: {hint}")
        if self.route.n < 1 or self.route.branching < 1:
            raise ValueError(f"the route {self.route} writes nothing")
        return self


class Arm(Section):
    """One way to spend a budget: its accuracy on problems not learned from, and its cost."""

    accuracy: Estimate
    cost: MeanCost


class Validation(Section):
    """All arms at one budget; `routed_minus`: paired differences of accuracy by problem."""

    measure: Measure
    budget: float
    arms: dict[str, Arm]
    routed_minus: dict[str, Estimate]


class LearnedPredictor(Section):
    """Coefficients, and how good they are on problems not learned from.

    confusion: problems, rows by measured and columns by predicted difficulty.
    """

    intercept: float
    weights: dict[str, float]
    confusion: dict[Difficulty, dict[Difficulty, float]]
    share_right: float
    share_right_without: float
    mean_error: float

    @model_validator(mode="after")
    def _has_all_features(self) -> "LearnedPredictor":
        if set(self.weights) != set(FEATURES):
            raise ValueError(f"weights must be those of {', '.join(FEATURES)}")
        return self


class LearnedPolicy(Section):
    """One policy with one PRM."""

    policy: str
    prm: str
    parameters: float
    prm_parameters: float
    problems: int
    left_out: int
    probe_cost: MeanCost
    predictor: LearnedPredictor
    routes: tuple[LearnedRoute, ...] = Field(min_length=1)
    validation: tuple[Validation, ...]

    @model_validator(mode="after")
    def _falls_back(self) -> "LearnedPolicy":
        for measure in {row.measure for row in self.routes}:
            free = {r.difficulty for r in self.routes if r.measure is measure and _is_free(r)}
            if missing := [str(d) for d in Difficulty if d not in free]:
                raise ValueError(f"no route within the probe for {missing[0]} in {measure}")
        return self


def _is_free(row: LearnedRoute) -> bool:
    return bool(getattr(row.cost, str(row.measure)) <= 0.0)


class FittedRun(Section):
    """A run that was learned from."""

    run_id: str
    recipe_digest: str


class Artifact(Section):
    """All that `branchwise fit` writes. `problem_ids`, `problem_texts`: hashed."""

    version: int
    probe: int = Field(gt=0)
    thresholds: Thresholds
    seed: int
    standard_errors: float
    runs: tuple[FittedRun, ...]
    problem_ids: tuple[str, ...]
    problem_texts: tuple[str, ...]
    policies: tuple[LearnedPolicy, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_known(self) -> "Artifact":
        if self.version != VERSION:
            raise ValueError(f"version {self.version}: this Branchwise reads version {VERSION}")
        return self


def save_artifact(artifact: Artifact, path: Path) -> None:
    """Writes the file; raises StorageError."""
    text = yaml.safe_dump(
        artifact.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_HEAD + text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def load_artifact(path: Path) -> Artifact:
    """Reads and checks the file; raises RecipeError, one line."""
    try:
        document = read_yaml(path)
    except OSError as error:
        raise RecipeError(
            f"cannot read {path}: {error.strerror}: write it with branchwise fit"
        ) from None
    except ValueError as error:
        raise RecipeError(f"{path} is not valid YAML: {one_line(error)}") from None
    try:
        return Artifact.model_validate(document)
    except ValidationError as error:
        raise RecipeError(
            f"{path}: {_explain(error)}: write it again with branchwise fit"
        ) from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _explain(error: ValidationError) -> str:
    """The first complaint as `place: what is wrong`."""
    detail = error.errors()[0]
    place = ".".join(map(str, detail["loc"])) or "the file"
    return one_line(f"{place}: {detail['msg'].removeprefix('Value error, ')}")


def hashed(text: str) -> str:
    """A short name for a problem's id or text; spaces do not matter."""
    normal = " ".join(text.split()).encode()
    return hashlib.blake2b(normal, digest_size=_HASH_BYTES).hexdigest()


def overlap(
    artifact: Artifact, problem_ids: Sequence[str], texts: Sequence[str] | None = None
) -> list[str]:
    """The ids of problems that were learned from, in the order given.

    texts: of the same problems; a known text counts under another id too.
    """
    ids, known = set(artifact.problem_ids), set(artifact.problem_texts)
    asked = texts if texts is not None else [""] * len(problem_ids)
    return [
        name
        for name, text in zip(problem_ids, asked, strict=True)
        if hashed(name) in ids or (text and hashed(text) in known)
    ]


class Router:
    """Chooses the search for a problem from a probe of it, by what was learned.

    prm: name of the PRM of the run (the last part of its model); needed if the artifact has
    several for a policy. thresholds: if the recipe has its own, they must be the artifact's.
    """

    def __init__(
        self, artifact: Artifact, prm: str | None = None, thresholds: Thresholds | None = None
    ) -> None:
        if thresholds is not None and thresholds != artifact.thresholds:
            fitted = artifact.thresholds
            raise RecipeError(
                f"the routes were fitted with thresholds easy={fitted.easy:g}, "
                f"hard={fitted.hard:g}: use those, or fit again with others"
            )
        self._artifact, self._prm = artifact, prm

    @property
    def probe(self) -> int:
        """k: `best_of_n` samples to draw of a problem before it is routed."""
        return self._artifact.probe

    def check(self, policy: str, budget: Budget) -> None:
        """Raises RecipeError if the policy is unknown or the budget cannot pay for a probe."""
        known = self._policy(policy)
        _rows(known, budget.measure)
        price = getattr(known.probe_cost, str(budget.measure))
        if budget.amount < price:
            raise RecipeError(
                f"a budget of {budget} is too small to probe {policy}: a probe of {self.probe} "
                f"samples costs {Budget(price, budget.measure)}; raise it or fit a smaller probe"
            )

    def learned(self, policy: str) -> LearnedPolicy:
        """What was learned for a policy; raises RecipeError if nothing was."""
        return self._policy(policy)

    def pass_at_1(self, policy: str, probe: pa.Table) -> float:
        """The estimate for the problem whose k `best_of_n` rows of `SOLUTIONS` are given."""
        if not len(probe):
            raise PolicyError("a probe brought no solutions: there is nothing to route by")
        learned = self._policy(policy).predictor
        samples = samples_of(probe)
        features = probe_features(samples.answer_class, samples.score)
        return float(Predictor(learned.intercept, learned.weights).pass_at_1(features))

    def route(self, policy: str, probe: pa.Table, left: Budget) -> Route:
        """The search for the rest of a problem's budget, of which the probe has been paid.

        The route of the largest budget whose mean cost fits what is left; where none does, the
        vote among the probe's own samples. Raises RecipeError for an unknown policy or measure,
        PolicyError for a probe without solutions.
        """
        bin_ = self._artifact.thresholds.bin_of(self.pass_at_1(policy, probe))
        rows = [r for r in _rows(self._policy(policy), left.measure) if r.difficulty is bin_]
        room = max(0.0, left.amount)
        fitting = [row for row in rows if getattr(row.cost, str(left.measure)) <= room]
        return max(fitting, key=lambda row: row.budget).route

    def _policy(self, name: str) -> LearnedPolicy:
        of_name = [p for p in self._artifact.policies if p.policy == name]
        found = [p for p in of_name if self._prm in (None, p.prm)]
        if len(found) == 1:
            return found[0]
        raise RecipeError(self._unknown(name, of_name))

    def _unknown(self, name: str, of_name: Iterable[LearnedPolicy]) -> str:
        prms = [policy.prm or "no PRM" for policy in of_name]
        if not prms:
            names = sorted({policy.policy for policy in self._artifact.policies})
            return f"nothing was fitted for the policy {name!r}: {did_you_mean(name, names)}"
        return f"the policy {name!r} was fitted with {', '.join(prms)}, not with {self._prm!r}"


def _rows(policy: LearnedPolicy, measure: Measure) -> list[LearnedRoute]:
    rows = [row for row in policy.routes if row.measure is measure]
    if not rows:
        fitted = ", ".join(sorted({row.measure for row in policy.routes}))
        raise RecipeError(f"no routes for budgets in {measure}, only in {fitted}: fit again")
    return rows
