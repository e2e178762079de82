"""The metrics of a run, as its driver knows them; docs/watching.md lists them.

Invariant: they are set every few seconds from counts that the driver keeps anyway, so that their
number grows with the deployments of a run and with nothing else.
"""

from collections.abc import Mapping

from actors.metrics import Declared, Exported

PRM = "prm"
RUN_TAGS = ("run", "deployment")
POLICY_METRICS = (
    Declared("problems", "gauge", "problems of the run"),
    Declared("problems_done", "gauge", "problems that are done, also before this process"),
    Declared("units", "gauge", "work units of the run as far as they are known"),
    Declared("units_done", "counter", "work units that came back with solutions"),
    Declared("units_failed", "counter", "work units that ended as an error row"),
    Declared("units_again", "counter", "times that a work unit failed and was run again"),
    Declared("tasks_lost", "counter", "tasks that were lost with their worker or machine"),
    Declared("solutions", "counter", "solutions that work units brought"),
    Declared("answers_graded", "counter", "solutions whose answer was graded"),
    Declared("answers_correct", "counter", "of those, the correct ones"),
    Declared("generations", "counter", "steps that the policy wrote"),
    Declared("generated_tokens", "counter", "tokens that the policy wrote"),
    Declared("discarded_tokens", "counter", "of those, tokens on no path of a solution"),
    Declared(
        "wasted_tokens",
        "counter",
        "not among the generated: written ahead and unused, or past a whole solution's end",
    ),
    Declared("prefix_tokens", "counter", "tokens before the steps that the policy wrote"),
    Declared("computed_prefix_tokens", "counter", "of those, tokens that no cache held"),
    Declared("commits", "counter", "commits to the run folder"),
    Declared("tasks_in_flight", "gauge", "tasks on the machines"),
    Declared("units_in_flight", "gauge", "work units on the machines"),
    Declared("units_waiting", "gauge", "work units that failed and will be run again"),
    Declared("solutions_in_flight", "gauge", "solutions that those on the machines will have"),
    Declared("solutions_admitted", "gauge", "solutions that may be in flight"),
)
PRM_METRICS = (
    Declared("prm_computed_tokens", "counter", "tokens that the PRM computed"),
    Declared("prm_minimal_tokens", "counter", "tokens that it had to compute: each step once"),
)
REPLICAS_METRICS = (
    Declared("replicas_ready", "gauge", "replicas that answer"),
    Declared("replicas_wanted", "gauge", "replicas that Serve was asked for"),
)
RUN_METRICS = (*POLICY_METRICS, *PRM_METRICS, *REPLICAS_METRICS)


class DeploymentMetrics:
    """The metrics of one deployment (a policy by its name, or `PRM`) in one run."""

    def __init__(self, run: str, deployment: str) -> None:
        own = PRM_METRICS if deployment == PRM else POLICY_METRICS
        declared = (*own, *REPLICAS_METRICS)
        self._kinds = {each.name: each.kind for each in declared}
        self._metrics = Exported(declared, dict(zip(RUN_TAGS, (run, deployment), strict=True)))

    def tell(self, values: Mapping[str, float]) -> None:
        """Sets those of its metrics that are given: of a counter its sum since it was made."""
        for name in values.keys() & self._kinds.keys():
            if self._kinds[name] == "counter":
                self._metrics.count(name, values[name])
            else:
                self._metrics.set(name, values[name])
