"""Grading what a problem's units left, and writing it.

Invariant: the rows of a problem, the numbers of its answer classes among them, depend on
nothing but its solutions: all of them are graded together, in their own order.
"""

import asyncio

import pyarrow as pa

from jobs.grading import Graders
from jobs.run_writer import RunWriter
from search.problem import Problem


class Commits:
    """One policy's results on their way into a run folder; so many problems are graded at once."""

    def __init__(self, writer: RunWriter, graders: Graders, at_once: int) -> None:
        self._writer, self._graders = writer, graders
        self._slots = asyncio.Semaphore(at_once)

    async def commit(self, problem: Problem, solutions: pa.Table) -> pa.Table:
        """Grades and writes all solutions of a problem; returns them graded."""
        async with self._slots:
            checked = await graded(solutions, problem, self._graders)
            self._graders.forget(problem)
            self._writer.add("solutions", checked)
        return checked

    async def ready(self) -> None:
        """Waits until those who came before have been graded, so that they do not pile up."""
        async with self._slots:
            return


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
