"""A problem: what the policy is asked, and what a right answer is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a data set.

    `metadata` is a JSON object as text, so that any data set's extra columns fit one schema.
    """

    problem_id: str
    text: str
    reference_answer: str
    metadata: str = "{}"
