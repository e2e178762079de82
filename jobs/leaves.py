"""Coverage of a tree's own leaves: what a search wrote to the end, counted as a solution or not.

`beam` and `dvts` leave finished nodes behind that are no solutions (docs/strategies.md). They
are told from `nodes`, and graded by what the run graded already: the verdict of the same answer
to the same problem, or what can be seen without algebra. Invariant: nothing is guessed right; an
answer that nobody graded counts as wrong, and is counted.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.curves import Search, without_routed
from jobs.grader_process import Verdict, verdict_at_sight
from jobs.results import load_table, table_parts
from jobs.storage import Where
from search.answers import boxed_answer
from search.protocols import StopReason
from search.schemas import NODES
from search.strategies import STRATEGIES
from search.subsampling import expected_pass
from search.votes import Ballots, Floats

SEARCH = tuple(field.name for field in fields(Search))
_GRADED = (*SEARCH, "problem_id", "unit_id", "subtree", "node_id", "answer", "verdict")
_NODE = ("policy", "unit_id", "node_id")
_LEAF = (*SEARCH, "problem_id", "subtree", "unit_id", "node_id")
_GOES_ON = (StopReason.DELIMITER, StopReason.LENGTH)
_HELD = (*SEARCH, "problem_id", "subtree")


@dataclass(frozen=True, slots=True)
class LeafCoverage:
    """One search: the chance that a tree of so many groups has a correct leaf.

    values (P, points of the curve): NaN where a problem lacks groups. left_out: finished nodes
    that are no solutions; ungraded: those of them whose answer was never graded.
    """

    search: Search
    problem_ids: list[str]
    values: Floats
    left_out: int
    ungraded: int

    def at(self, n: int) -> dict[str, float]:
        """By problem, at a point of the curve."""
        column = self.values[:, self.search.ns.index(n)]
        pairs = zip(self.problem_ids, column.tolist(), strict=True)
        return {problem: value for problem, value in pairs if value == value}


def leaf_coverage(folder: Where) -> list[LeafCoverage]:
    """Every search of a run; raises StorageError if a table cannot be read."""
    read = map(without_routed, table_parts(folder, "solutions", _GRADED))
    parts = [part for part in read if len(part)]
    if not parts:
        return []
    solutions = pa.concat_tables(parts)
    leaves = _graded(folder, left_out(folder, solutions), solutions)
    right = pc.equal(solutions["verdict"], Verdict.CORRECT)
    held = solutions.select(_HELD).append_column("right", right)
    all_leaves = pa.concat_tables([held, leaves.select([*_HELD, "right"])])
    return _by_search(all_leaves, leaves)


def left_out(folder: Where, solutions: pa.Table) -> pa.Table:
    """Finished nodes that are no solutions, each with the `answer` of its path.

    solutions: at least `policy`, `unit_id` and `node_id` of all of them.
    """
    counted, found = solutions.select(_NODE), []
    for part in table_parts(folder, "nodes", [*_LEAF, "parent_id", "text", "stop_reason"]):
        leaves = _finished(without_routed(part)).join(
            counted, keys=list(_NODE), join_type="left anti"
        )
        answers = pa.array(list(_answers(part, leaves)), pa.string())
        found.append(leaves.select(_LEAF).append_column("answer", answers))
    schema = pa.schema([*(NODES.field(name) for name in _LEAF), pa.field("answer", pa.string())])
    return pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in found)])


def _finished(nodes: pa.Table) -> pa.Table:
    """Nodes that end a solution, of strategies that may leave one behind."""
    branching = pa.array([name for name, kind in STRATEGIES.items() if kind.branches])
    ended = pc.invert(pc.is_in(nodes["stop_reason"], pa.array([str(r) for r in _GOES_ON])))
    kept = pc.and_(ended, pc.is_in(nodes["strategy"], branching))
    return nodes.filter(kept).select(_LEAF)


def _answers(nodes: pa.Table, leaves: pa.Table) -> Iterator[str]:
    """The answer of the whole path to each leaf; its unit stands in this part altogether."""
    units = pc.unique(leaves["unit_id"])
    near = nodes.filter(pc.is_in(nodes["unit_id"], units))
    keys = _rows(near, _NODE)
    steps = dict(zip(keys, _rows(near, ("parent_id", "text")), strict=True))
    for policy, unit, node in _rows(leaves, _NODE):
        texts = []
        while (policy, unit, node) in steps:
            node, text = steps[policy, unit, node]
            texts.append(text)
        yield boxed_answer("".join(reversed(texts)))


def _rows(table: pa.Table, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def _graded(folder: Where, leaves: pa.Table, solutions: pa.Table) -> pa.Table:
    """The leaves with `right`, and `known`: whether anybody graded that answer."""
    asked = set(_rows(leaves, ("problem_id", "answer")))
    grades: dict[tuple[str, str], bool] = {}
    for problem, answer, verdict in _rows(solutions, ("problem_id", "answer", "verdict")):
        if (problem, answer) in asked:
            grades[problem, answer] = verdict == Verdict.CORRECT
    problems = load_table(folder, "problems")
    references = dict(_rows(problems, ("problem_id", "reference_answer")))
    for problem, answer in asked - grades.keys():
        verdict = verdict_at_sight(references.get(problem, ""), answer)
        if verdict is not None:
            grades[problem, answer] = verdict is Verdict.CORRECT
    found = [grades.get(pair) for pair in _rows(leaves, ("problem_id", "answer"))]
    right = pa.array([bool(grade) for grade in found], pa.bool_())
    known = pa.array([grade is not None for grade in found], pa.bool_())
    return leaves.append_column("right", right).append_column("known", known)


def _by_search(leaves: pa.Table, left: pa.Table) -> list[LeafCoverage]:
    groups = leaves.group_by(list(_HELD)).aggregate([("right", "max")])
    problems = groups.group_by([*SEARCH, "problem_id"]).aggregate([("right_max", "list")])
    found: defaultdict[Search, dict[str, list[bool]]] = defaultdict(dict)
    for *place, problem, right in _rows(problems, (*SEARCH, "problem_id", "right_max_list")):
        found[Search(*place)][problem] = right
    counts = _counts(left)
    return [_covered(search, found[search], *counts[search]) for search in sorted(found)]


def _counts(left: pa.Table) -> defaultdict[Search, tuple[int, int]]:
    """Leaves left out of each search, and how many of them nobody graded."""
    counts: defaultdict[Search, tuple[int, int]] = defaultdict(lambda: (0, 0))
    summed = left.group_by(list(SEARCH)).aggregate([("known", "count"), ("known", "sum")])
    for *place, leaves, known in _rows(summed, (*SEARCH, "known_count", "known_sum")):
        counts[Search(*place)] = leaves, leaves - int(known or 0)
    return counts


def _covered(
    search: Search, right: dict[str, list[bool]], left: int, ungraded: int
) -> LeafCoverage:
    names = sorted(right)
    values = np.full((len(names), len(search.ks)), np.nan)
    for row, name in enumerate(names):
        held = right[name]
        ks = search.ks_held(len(held))
        values[row, : len(ks)] = expected_pass(_ballots(held), ks)
    return LeafCoverage(search, names, values, left, ungraded)


def _ballots(right: list[bool]) -> Ballots:
    groups = np.arange(len(right))
    return Ballots(groups, np.zeros(len(right), dtype=np.int64), np.array(right, dtype=bool))
