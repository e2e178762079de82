"""Committing what work units leave.

Nodes and unit rows are written as they come. Solutions wait until all units of their problem
are back and are then graded together. Invariant: the rows of a problem, the numbers of its
answer classes among them, do not depend on the order in which its units finished. Memory holds
the solutions of problems that are under way, and nothing of any other.
"""

from collections import defaultdict

import pyarrow as pa

from cluster.fanout import UnitTables
from jobs.grading import Graders
from jobs.results import RunWriter
from search.problem import Problem
from search.schemas import SOLUTIONS


class Commits:
    """One policy's results on their way into a run folder."""

    def __init__(self, writer: RunWriter, graders: Graders, units_a_problem: int) -> None:
        self._writer, self._graders = writer, graders
        self._units_a_problem = units_a_problem
        self._ungraded: defaultdict[str, list[pa.Table]] = defaultdict(list)

    async def take(self, done: UnitTables) -> pa.Table:
        """Writes a unit's rows; returns what was graded: nothing, or a whole problem."""
        problem = done.unit.problem
        self._writer.add("nodes", done.nodes)
        self._writer.add("units", done.units)
        waiting = self._ungraded[problem.problem_id]
        waiting.append(done.solutions)
        if len(waiting) < self._units_a_problem:
            return SOLUTIONS.empty_table()
        solutions = pa.concat_tables(self._ungraded.pop(problem.problem_id))
        checked = await graded(solutions, problem, self._graders)
        self._graders.forget(problem)
        self._writer.add("solutions", checked)
        return checked


async def graded(solutions: pa.Table, problem: Problem, graders: Graders) -> pa.Table:
    """The solutions with verdict, answer class and the task's own score filled in."""
    judgements = await graders.judge(problem, solutions["answer"].to_pylist())
    columns = {
        "answer_class": [judgement.answer_class for judgement in judgements],
        "verdict": [str(judgement.verdict) for judgement in judgements],
        "task_score": [judgement.task_score for judgement in judgements],
    }
    for name, values in columns.items():
        place = solutions.schema.get_field_index(name)
        field = solutions.schema.field(name)
        solutions = solutions.set_column(place, field, pa.array(values, field.type))
    return solutions
