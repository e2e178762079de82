"""Every result table, declared once. docs/tables.md describes the columns for readers.

Invariant: a table that leaves the process has exactly one of these schemas, and its files
carry `SCHEMA_VERSION` in their metadata.
"""

import pyarrow as pa

SCHEMA_VERSION = "3"
VERSION_KEY = b"branchwise.schema_version"
_VERSIONED = {VERSION_KEY: SCHEMA_VERSION.encode()}


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in fields], metadata=_VERSIONED)


_SEARCH = (
    ("problem_id", pa.string()),
    ("policy", pa.string()),
    ("strategy", pa.string()),
    ("n", pa.int32()),
    ("branching", pa.int32()),
    ("keep", pa.int32()),
    ("variant", pa.string()),
)

PROBLEMS = _schema(
    ("problem_id", pa.string()),
    ("text", pa.string()),
    ("reference_answer", pa.string()),
    ("metadata", pa.string()),
    ("error", pa.string()),
)

NODES = _schema(
    *_SEARCH,
    ("unit_id", pa.string()),
    ("subtree", pa.int32()),
    ("node_id", pa.string()),
    ("parent_id", pa.string()),
    ("depth", pa.int32()),
    ("text", pa.string()),
    ("policy_tokens", pa.int32()),
    ("logprob", pa.float64()),
    ("reward", pa.float64()),
    ("kept", pa.bool_()),
    ("stop_reason", pa.string()),
)

SOLUTIONS = _schema(
    *_SEARCH,
    ("unit_id", pa.string()),
    ("subtree", pa.int32()),
    ("solution_id", pa.string()),
    ("node_id", pa.string()),
    ("text", pa.string()),
    ("answer", pa.string()),
    ("answer_class", pa.int32()),
    ("verdict", pa.string()),
    ("task_score", pa.float64()),
    ("rewards", pa.list_(pa.float64())),
    ("policy_tokens", pa.int32()),
    ("prm_tokens", pa.int32()),
    ("stop_reason", pa.string()),
)

ANSWERS = _schema(
    *_SEARCH,
    ("searched_n", pa.int32()),
    ("reduction", pa.string()),
    ("vote", pa.string()),
    ("answer", pa.string()),
    ("expected_correct", pa.float64()),
    ("ci_low", pa.float64()),
    ("ci_high", pa.float64()),
)

SAMPLES = _schema(
    *_SEARCH,
    ("samples", pa.int32()),
    ("pass_at_1", pa.float64()),
    ("ci_low", pa.float64()),
    ("ci_high", pa.float64()),
    ("ks", pa.list_(pa.int32())),
    ("pass_at_k", pa.list_(pa.float64())),
    ("cons_at_k", pa.float64()),
    ("cut_share", pa.float64()),
    ("mean_tokens", pa.float64()),
    ("divergence", pa.float64()),
    ("weight", pa.float64()),
)

UNITS = _schema(
    *_SEARCH,
    ("unit_id", pa.string()),
    ("status", pa.string()),
    ("error", pa.string()),
    ("attempts", pa.int32()),
    ("node_ip", pa.string()),
    ("ray_node_id", pa.string()),
    ("policy_replica", pa.string()),
    ("prm_replica", pa.string()),
    ("seconds", pa.float64()),
    ("solutions", pa.int32()),
    ("generations", pa.int64()),
    ("generated_policy_tokens", pa.int64()),
    ("prefix_policy_tokens", pa.int64()),
    ("computed_prefix_policy_tokens", pa.int64()),
    ("discarded_policy_tokens", pa.int64()),
    ("speculated_policy_tokens", pa.int64()),
    ("wasted_policy_tokens", pa.int64()),
    ("aborted_generations", pa.int64()),
    ("lookahead_policy_tokens", pa.int64()),
    ("computed_prm_tokens", pa.int64()),
    ("minimal_prm_tokens", pa.int64()),
    ("flops", pa.float64()),
)

# One row a run: what a night is compared by with the nights before.
RUNS = _schema(
    ("run_id", pa.string()),
    ("recipe", pa.string()),
    ("partition", pa.string()),
    ("recipe_digest", pa.string()),
    ("git_revision", pa.string()),
    ("versions", pa.string()),
    ("started_at", pa.string()),
    ("finished_at", pa.string()),
    ("seconds", pa.float64()),
    ("problems", pa.int64()),
    ("bad_problems", pa.int64()),
    ("units", pa.int64()),
    ("failed_units", pa.int64()),
    ("retries", pa.int64()),
    ("solutions", pa.int64()),
    ("generated_policy_tokens", pa.int64()),
    ("prefix_policy_tokens", pa.int64()),
    ("discarded_policy_tokens", pa.int64()),
    ("computed_prm_tokens", pa.int64()),
    ("minimal_prm_tokens", pa.int64()),
    ("tokens", pa.int64()),
    ("flops", pa.float64()),
    ("policy_tokens_per_second", pa.float64()),
    ("gpu_type", pa.string()),
    ("gpu_seconds", pa.float64()),
    ("usd", pa.float64()),
    ("policy", pa.string()),
    ("strategy", pa.string()),
    ("variant", pa.string()),
    ("n", pa.int32()),
    ("branching", pa.int32()),
    ("reduction", pa.string()),
    ("vote", pa.string()),
    ("accuracy", pa.float64()),
    ("ci_low", pa.float64()),
    ("ci_high", pa.float64()),
)

# Not of a run: what `branchwise contamination` writes.
CONTAMINATION = _schema(
    ("problem_id", pa.string()),
    ("words", pa.int32()),
    ("ngrams", pa.int32()),
    ("shared", pa.int32()),
    ("overlap", pa.float64()),
    ("finding", pa.string()),
    ("file", pa.string()),
    ("line", pa.int64()),
)

STOPS = _schema(
    *_SEARCH,
    ("decided_at", pa.int32()),
    ("solutions", pa.int32()),
    ("audited", pa.bool_()),
)

ROUTES = _schema(
    *_SEARCH,
    ("searched_as", pa.string()),
    ("routes", pa.string()),
    ("measure", pa.string()),
    ("budget", pa.float64()),
    ("pass_at_1", pa.float64()),
    ("difficulty", pa.string()),
    ("route_strategy", pa.string()),
    ("route_n", pa.int32()),
    ("route_branching", pa.int32()),
    ("route_reduction", pa.string()),
    ("route_vote", pa.string()),
    ("route_vote_reduction", pa.string()),
    ("route_variant", pa.string()),
    ("probe_solutions", pa.int32()),
    ("probe_tokens", pa.int64()),
    ("probe_flops", pa.float64()),
    ("rest_solutions", pa.int32()),
    ("rest_tokens", pa.int64()),
    ("rest_flops", pa.float64()),
    ("overspent", pa.bool_()),
    ("answer", pa.string()),
    ("answer_class", pa.int32()),
    ("expected_correct", pa.float64()),
)

# Tables that came later without a change to the others: a run without its file has no rows.
MAY_BE_MISSING = ("routes", "runs")
TABLES = {
    "problems": PROBLEMS,
    "nodes": NODES,
    "solutions": SOLUTIONS,
    "answers": ANSWERS,
    "samples": SAMPLES,
    "units": UNITS,
    "routes": ROUTES,
    "runs": RUNS,
    "stops": STOPS,
}

# What a run commits while it goes on. `found`: solutions of a unit before they are graded, which
# all units of a problem are together.
COMMITTED = {
    "nodes": NODES,
    "found": SOLUTIONS,
    "solutions": SOLUTIONS,
    "routes": ROUTES,
    "stops": STOPS,
    "units": UNITS,
}
