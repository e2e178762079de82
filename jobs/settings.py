"""The sections and keys of a recipe, each with its type, default and description."""

from typing import Annotated, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    PositiveFloat,
    Tag,
    field_validator,
)

from actors.prm_families import PRM_FAMILIES
from actors.prompts import CHAT, PROMPT_STYLES
from jobs.budgets import Budget
from jobs.data import DataSource, PositiveInt, Section, did_you_mean, optional
from jobs.headline_settings import HeadlineSettings, RegressionSettings
from jobs.routed_settings import RoutedSettings
from search.config import (
    ALLOCATION,
    COMPUTE_OPTIMAL,
    STOP,
    WIDTH_TEMPERATURE,
    Compat,
    CompatOption,
    Limits,
    SearchConfig,
    variant_of,
)
from search.protocols import Sampling
from search.rewards import Reduction
from search.strategies import STRATEGIES, keep_count
from search.thinking import Scored, Thinking

DEFAULT_BRANCHING = 4

Engine = Literal["transformers", "vllm", "fake"]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]
Protocol = Literal["search", "sampling"]
# Run folders start with it, and a file system allows 255 bytes.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.\-]*$", max_length=100)]
# What a process can be told to wait for: above a few weeks, the operating system refuses.
Seconds = Annotated[float, Field(gt=0, le=1e6)]


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


class TimingSettings(Section):
    """What an engine was measured to take, in seconds; only `branchwise plan` reads it."""

    iteration_s: PositiveFloat = Field(description="One iteration, whatever the batch")
    sequence_s: float = Field(default=0, ge=0, description="Each running sequence adds to it")
    prompt_token_s: float = Field(default=0, ge=0, description="Each token that is only read")


class AutoscalingSettings(Section):
    """How the number of a model's replicas follows its work."""

    min: int = Field(default=1, ge=0, description="Replicas when there is nothing to do")
    max: PositiveInt = Field(description="Replicas at most")
    target: PositiveFloat | None = optional(
        "Sequences under way in a replica; with more there are more replicas; max_batch if null"
    )
    upscale_delay_s: float = Field(
        default=10.0, ge=0, le=1e6, description="Seconds for which more must have been wanted"
    )
    downscale_delay_s: float = Field(
        default=60.0, ge=0, le=1e6, description="Seconds for which fewer must have been wanted"
    )


class ModelSettings(Section):
    """A model and the Serve deployment that answers for it."""

    model: str = Field(min_length=1, description="Folder of a checkpoint, or Hugging Face id")
    engine: Engine = Field(
        default="transformers", description="What runs the model; fake needs no folder"
    )
    dtype: Dtype | None = optional(
        "Number type; bfloat16 with GPUs; float64 without, in vllm float32"
    )
    replicas: PositiveInt = Field(
        default=1, description="Copies of the model, each with its own batch"
    )
    autoscaling: AutoscalingSettings | None = optional(
        "Replicas that come and go with the work, instead of a fixed number"
    )
    gpus_per_replica: float = Field(
        default=0, ge=0, description="GPUs of one replica; 0 runs on the CPU"
    )
    cpus_per_replica: float = Field(default=1, ge=0, description="CPU cores of one replica")
    max_ongoing_requests: PositiveInt = Field(
        default=4096, description="Calls by Serve under way in one replica; work units make none"
    )
    max_batch: PositiveInt = Field(
        default=64, description="Sequences computed together in one replica"
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="Passed on to the engine as they are"
    )
    timing: TimingSettings | None = optional("Measured speed, for plans; from the GPU type if null")

    @property
    def most_replicas(self) -> int:
        """How many there are at most."""
        return self.autoscaling.max if self.autoscaling else self.replicas

    @property
    def most_gpus(self) -> float:
        """GPUs of all replicas."""
        return self.gpus_per_replica * self.most_replicas

    @property
    def most_cores(self) -> float:
        """CPU cores of all replicas."""
        return self.cpus_per_replica * self.most_replicas


class ThinkingSettings(Section):
    """The marks around what a policy thinks before it answers."""

    end: str = Field(default="</think>", min_length=1, description="Ends the thinking part")
    start: str = Field(
        default="<think>", min_length=1, description="Begins another one, after the first has ended"
    )
    score: Scored = Field(
        default=Scored.ANSWER,
        description="What the PRM reads and scores: what is not thinking, or all",
    )


class PolicySettings(ModelSettings):
    """A policy: one rung of the ladder."""

    name: Name | None = optional("Name in the tables; the last part of model if not given")
    prompt: str = Field(
        default=CHAT, description=f"What stands around a problem: {', '.join(PROMPT_STYLES)}"
    )
    system_prompt: str = Field(
        default="", description="Put before the problem in the chat template (prompt: chat)"
    )
    prompt_template: str | None = optional("The whole prompt, with {problem} (prompt: template)")
    thinking: ThinkingSettings | None = optional("How it marks its thinking; null if it has none")

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, prompt: str) -> str:
        if prompt not in PROMPT_STYLES:
            hint = did_you_mean(prompt, list(PROMPT_STYLES))
            raise ValueError(f"unknown prompt style {prompt!r}: {hint}")
        return prompt


class PRMSettings(ModelSettings):
    """The process reward model."""

    family: str = Field(description=f"Layout and reading of rewards: {', '.join(PRM_FAMILIES)}")
    system_prompt: str | None = optional("Put before the problem; the family's own if not given")

    @field_validator("family")
    @classmethod
    def _known_family(cls, family: str) -> str:
        if family not in PRM_FAMILIES:
            raise ValueError(
                f"unknown PRM family {family!r}: {did_you_mean(family, list(PRM_FAMILIES))}"
            )
        return family


class StopSettings(Section):
    """When a problem's answer counts as settled, so that no more solutions are written."""

    rule: Literal["posterior", "vote_margin"] = Field(
        default="posterior", description="What is looked at: posterior or vote_margin"
    )
    threshold: float = Field(
        default=0.95, gt=0, le=1, description="The rule holds from this value on"
    )
    at_least: PositiveInt = Field(default=16, description="Solutions before the first look")
    every: PositiveInt = Field(default=16, description="Solutions between two looks")
    vote: Literal["weighted", "majority"] = Field(
        default="weighted", description="Votes that are counted: scores or solutions"
    )
    most_extra: int = Field(
        default=0, ge=0, description="Saved solutions that an undecided problem may have beyond N"
    )
    audit: float = Field(
        default=0.1, ge=0, le=1, description="Share of problems that run to the end all the same"
    )

    @property
    def name(self) -> str:
        """What tells a search with this rule from others."""
        return STOP + _rule_name(self)


class AllocationSettings(Section):
    """How a budget of N solutions a problem is divided over the problems."""

    rule: Literal["max_entropy"] = Field(
        default="max_entropy", description="More for problems that are solved half of the time"
    )
    probe: PositiveInt = Field(default=8, description="Solutions that every problem begins with")
    strength: float = Field(
        default=1.0, ge=0, description="Lambda of the weight; 0 gives all problems the same"
    )
    success: Literal["agreement", "graded"] = Field(
        default="agreement",
        description="Success of a probe: votes for its best answer, or correct ones",
    )

    @property
    def name(self) -> str:
        """What tells a search with this rule from others."""
        return ALLOCATION + _rule_name(self)


def _rule_name(section: "StopSettings | AllocationSettings") -> str:
    """The rule and what is not default about it, such as "posterior,threshold=0.9"."""
    fields = type(section).model_fields
    values = {name: getattr(section, name) for name in fields if name != "rule"}
    changed = [f"{name}={v}" for name, v in values.items() if v != fields[name].default]
    return ",".join([section.rule, *changed])


class SearchSettings(Section):
    """One strategy at one or several N."""

    strategy: str = Field(description=f"One of {', '.join(STRATEGIES)}")
    n: Annotated[tuple[PositiveInt, ...], BeforeValidator(_as_list)] = Field(
        min_length=1, description="Solutions a search returns; a list means one search for each"
    )
    branching: PositiveInt | None = optional("Candidates for each kept node (4 if not given)")
    reduction: Reduction = Field(
        default=Reduction.LAST,
        description="How step rewards become the score that keeps a candidate",
    )
    policies: tuple[str, ...] | None = optional("Names of the policies that run it; all if null")
    lookahead: int = Field(
        default=0, ge=0, description="Greedy steps that the PRM reads after a candidate"
    )
    score_every: PositiveInt = Field(
        default=1, description="Steps of a candidate, which is scored at its end"
    )
    width_temperature: PositiveFloat = Field(
        default=WIDTH_TEMPERATURE, description="How evenly rebase divides its width"
    )
    compat: Compat | None = optional("Published system whose rule is followed instead")
    compat_options: tuple[CompatOption, ...] = Field(
        default=(), description="Settings of search_and_learn's beam that are on"
    )
    stop: StopSettings | None = optional("Ends a problem when its answer has settled")
    allocation: AllocationSettings | None = optional(
        "Divides the N solutions a problem over all problems"
    )

    @field_validator("strategy")
    @classmethod
    def _known_strategy(cls, strategy: str) -> str:
        if strategy not in STRATEGIES:
            hint = did_you_mean(strategy, [*STRATEGIES, COMPUTE_OPTIMAL])
            raise ValueError(f"unknown strategy {strategy!r}: {hint}")
        return strategy

    def is_run_by(self, policy: str) -> bool:
        """Whether a policy, by its name, runs this search."""
        return self.policies is None or policy in self.policies

    @property
    def variant(self) -> str:
        """What tells it from other searches of its strategy; see `SearchConfig.variant`."""
        return variant_of(
            self.compat,
            self.compat_options,
            self.lookahead,
            self.score_every,
            self.width_temperature,
            self.spending,
        )

    @property
    def spending(self) -> str:
        """How solutions are given out; "" for N to every problem."""
        return " ".join(each.name for each in (self.stop, self.allocation) if each)

    def candidates(self) -> int | None:
        """The branching M with its default; None for a strategy that does not branch."""
        return (self.branching or DEFAULT_BRANCHING) if STRATEGIES[self.strategy].branches else None


# Two kinds of entries under `searches`; a space keeps the tags apart from keys of a recipe.
_PLAIN_TAG, _ROUTED_TAG = "plain search", "routed search"
SEARCH_KINDS: dict[str, type[Section]] = {
    _PLAIN_TAG: SearchSettings,
    _ROUTED_TAG: RoutedSettings,
}


def _kind_of_search(value: object) -> str:
    named = value.get("strategy") if isinstance(value, dict) else getattr(value, "strategy", None)
    return _ROUTED_TAG if named == COMPUTE_OPTIMAL else _PLAIN_TAG


AnySearch: TypeAlias = Annotated[
    Annotated[SearchSettings, Tag(_PLAIN_TAG)] | Annotated[RoutedSettings, Tag(_ROUTED_TAG)],
    Discriminator(_kind_of_search),
]


class LimitSettings(Section):
    """Where steps and solutions end at the latest."""

    max_steps: PositiveInt = Field(default=40, description="Steps of a solution")
    max_step_tokens: PositiveInt = Field(default=512, description="Policy tokens of a step")
    max_solution_tokens: PositiveInt = Field(
        default=2048, description="Policy tokens of a solution"
    )
    stop_at_boxed: bool = Field(
        default=True, description="End a solution with its first boxed answer"
    )


class SamplingSettings(Section):
    """How a policy draws tokens."""

    temperature: float = Field(default=1.0, ge=0, description="0 always takes the likeliest token")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Draw from the likeliest tokens of this mass"
    )
    delimiter: str = Field(default="\n\n", min_length=1, description="Text that ends a step")


class WorkSettings(Section):
    """How work is cut up and how long it may take."""

    solutions_per_unit: PositiveInt = Field(
        default=64, description="Solutions of one work unit, at most"
    )
    units_in_flight: PositiveInt | None = optional("Tasks at once; from replicas if null")
    speculation: bool = Field(
        default=True, description="Beam: write likely steps early where replicas have room"
    )
    checkpoint_interval_s: Seconds = Field(
        default=30.0, description="Seconds of finished work that a killed run may lose"
    )
    grading_timeout_s: Seconds = Field(default=5.0, description="Processor seconds for one answer")
    grading_processes: PositiveInt = Field(default=1, description="Child processes that grade")
    unit_timeout_s: Seconds = Field(default=3600.0, description="Seconds for one work unit")
    unit_attempts: PositiveInt = Field(
        default=4, description="Times a failing work unit is run before its error is a row"
    )


class ClusterSettings(Section):
    """The machines a run is planned for."""

    gpu_memory_gib: PositiveFloat | None = optional("Memory of one GPU; 80 is assumed if null")
    autoscales: bool = Field(
        default=False, description="Whether machines are added when replicas wait for room"
    )
    machines_timeout_s: Seconds = Field(
        default=1800.0,
        description="Seconds for a machine to come and a model to load, if machines are added",
    )


class DifficultySettings(Section):
    """Limits of the three bins; those of `jobs.difficulty.Thresholds`, which loads more."""

    easy: float = Field(default=0.5, gt=0, le=1, description="Pass@1 from which a problem is easy")
    hard: float = Field(default=0.1, gt=0, le=1, description="Pass@1 below which it is hard")


class Recipe(Section):
    """All that a run depends on."""

    name: Name = Field(description="Name of the recipe; run folders start with it")
    seed: int = Field(
        default=0, ge=0, description="Every random draw of the searches follows from it"
    )
    data: Annotated[tuple[DataSource, ...], BeforeValidator(_as_list)] = Field(
        min_length=1, description="One source of problems or a list of them"
    )
    policies: tuple[PolicySettings, ...] = Field(
        min_length=1, description="The ladder of policies, run one after the other"
    )
    prm: PRMSettings | None = optional("The PRM; not needed if every search is majority")
    searches: tuple[AnySearch, ...] = Field(
        min_length=1, description="What is run on every problem with every policy"
    )
    protocol: Protocol = Field(
        default="search", description="sampling takes independent samples only and reports them"
    )
    max_entropy_lambda: float = Field(
        default=1.0, ge=0, description="Lambda of the weights in the table samples"
    )
    difficulty: DifficultySettings = Field(
        default=DifficultySettings(), description="Bins of problems in the report"
    )
    headline: HeadlineSettings = Field(
        default=HeadlineSettings(), description="The search that stands for the run"
    )
    regression: RegressionSettings | None = optional(
        "When a dated run is worse than those before it; not checked if null"
    )
    limits: LimitSettings = Field(
        default=LimitSettings(), description="Limits of steps and solutions"
    )
    sampling: SamplingSettings = Field(
        default=SamplingSettings(), description="How tokens are drawn"
    )
    work: WorkSettings = Field(
        default=WorkSettings(), description="Work units and their time limits"
    )
    cluster: ClusterSettings = Field(
        default=ClusterSettings(), description="The machines that the run is planned for"
    )
    runs_folder: str = Field(
        default="runs",
        min_length=1,
        pattern=r"^[^\x00]*$",
        description="Where run folders are made: a path, or a URI such as `s3://bucket/runs`",
    )

    def search_configs(self, policy: str | None = None) -> list[SearchConfig]:
        """One configuration for each search and each of its N, in the recipe's order.

        policy: a policy's name, for the searches that it runs, with the marks of its thinking.
        """
        return [config for _, config in self.searches_of(policy)]

    def searches_of(self, policy: str | None = None) -> list[tuple[SearchSettings, SearchConfig]]:
        """The same configurations, each with the settings that it comes from."""
        plain = (search for search in self.searches if isinstance(search, SearchSettings))
        run = [s for s in plain if policy is None or s.is_run_by(policy)]
        thinking = self.thinking_of(policy)
        return [(search, self._config(search, n, thinking)) for search in run for n in search.n]

    def routed_of(self, policy: str) -> list[tuple[RoutedSettings, Budget]]:
        """The compute-optimal searches that a policy runs, one for each budget."""
        routed = (search for search in self.searches if isinstance(search, RoutedSettings))
        run = [search for search in routed if search.is_run_by(policy)]
        return [(search, budget) for search in run for budget in search.budgets]

    def thinking_of(self, policy: str | None) -> Thinking | None:
        """How a policy marks its thinking, if it does."""
        marks = next((p.thinking for p in self.policies if p.name == policy), None)
        return Thinking(**marks.model_dump()) if marks else None

    def _config(self, search: SearchSettings, n: int, thinking: Thinking | None) -> SearchConfig:
        branching = search.candidates() or 1
        return SearchConfig(
            strategy=search.strategy,
            n=n,
            branching=branching,
            keep=keep_count(search.strategy, n, branching),
            reduction=search.reduction,
            run_seed=self.seed,
            limits=Limits(**self.limits.model_dump()),
            sampling=Sampling(**self.sampling.model_dump()),
            lookahead=search.lookahead,
            score_every=search.score_every,
            width_temperature=search.width_temperature,
            compat=search.compat,
            compat_options=search.compat_options,
            thinking=thinking,
            spending=search.spending,
        )
