"""The static table of a published study: a strategy by the policy's size and the difficulty.

Liu et al. 2025 (arXiv 2502.06703) as its authors give it in issue 4 of
RyanLiu112/compute-optimal-tts. Difficulty was measured there, with the reference answers. Which
vote and reduction went with it is not said; here it is the weighted vote of last rewards, and
a majority for R1 distillations.
"""

from enum import StrEnum

from jobs.difficulty import Difficulty
from jobs.routes import Route
from search.errors import RecipeError
from search.rewards import Reduction
from search.strategies import STRATEGIES
from search.votes import Vote

BRANCHING = 4
SMALL = 7e9
# The table says 32B, which is a model's name: Qwen2.5-32B has 32.8e9 parameters.
LARGE = 33.5e9
AIME_LARGE = 14e9


class Exam(StrEnum):
    """What the rules are for: MATH-500, AIME 2024, or R1-distilled policies on either."""

    MATH500 = "liu2025"
    AIME24 = "liu2025_aime"
    R1 = "liu2025_r1"


def liu2025_strategy(parameters: float, difficulty: Difficulty, exam: Exam = Exam.MATH500) -> str:
    """The table's strategy for a policy of so many parameters; raises RecipeError without them."""
    if parameters <= 0.0:
        raise RecipeError("table liu2025 goes by the policy's parameters, which are unknown here")
    match exam:
        case Exam.R1:
            return "best_of_n"
        case Exam.AIME24:
            return "dvts" if parameters < AIME_LARGE else "best_of_n"
    if parameters > LARGE:
        return "best_of_n"
    return "beam" if parameters < SMALL or difficulty is Difficulty.HARD else "dvts"


def liu2025(
    parameters: float, difficulty: Difficulty, solutions: int, exam: Exam = Exam.MATH500
) -> Route:
    """The route of the table with as many solutions as fit; raises RecipeError for too few."""
    strategy = liu2025_strategy(parameters, difficulty, exam)
    branching = BRANCHING if STRATEGIES[strategy].branches else 1
    n = solutions // branching * branching
    if n < 1:
        raise RecipeError(f"table {exam}: {strategy} needs {branching} solutions, not {solutions}")
    vote = Vote.MAJORITY if exam is Exam.R1 else Vote.WEIGHTED
    scored = None if exam is Exam.R1 else Reduction.LAST
    return Route(strategy, n, branching, Reduction.LAST, vote, scored)
