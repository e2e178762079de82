"""Intervals over problems: by hand, at their edges, and how often they hold the truth."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from jobs.intervals import accuracy_interval, clustered_interval
from search.votes import Floats

pytestmark = pytest.mark.unit

Interval = Callable[[Floats], tuple[Floats, Floats, Floats]]
BOTH: tuple[Interval, ...] = (accuracy_interval, clustered_interval)
# Accuracies of problems as policies have them: Beta distributions of the chance of an answer.
MIXES = {
    "even": (2.0, 2.0),
    "skewed": (0.5, 1.0),
    "all or nothing": (0.3, 0.3),
    "hard": (0.2, 1.8),
    "easy": (1.8, 0.2),
}
REPETITIONS = 4000
# 4 standard errors of a coverage of 95 % that is measured so often.
CHANCE = 4 * np.sqrt(0.95 * 0.05 / REPETITIONS)


def test_students_t_by_hand() -> None:
    values = np.array([[0.0, np.nan], [1.0, 0.25], [0.5, np.nan]])
    mean, low, high = clustered_interval(values)
    assert mean.tolist() == [0.5, 0.25]
    known = stats.t.interval(0.95, 2, 0.5, stats.sem([0.0, 1.0, 0.5]))
    assert (low[0], high[0]) == pytest.approx(known)


def test_right_and_wrong_answers_get_wilsons_interval() -> None:
    values = np.repeat([0.0, 1.0], [70, 30])
    mean, low, high = accuracy_interval(values)
    t = stats.t.ppf(0.975, 99)
    middle = (0.3 + t**2 / 200) / (1 + t**2 / 100)
    half = t * np.sqrt(0.3 * 0.7 / 100 + t**2 / 40000) / (1 + t**2 / 100)
    assert (mean, low, high) == pytest.approx((0.3, middle - half, middle + half))


def test_steady_problems_count_for_more_than_one_answer_each() -> None:
    steady, single = np.full(40, 0.5), np.repeat([0.0, 1.0], 20)
    steady[::2] += 0.1
    steady[1::2] -= 0.1
    widths = [np.subtract(*accuracy_interval(values)[:0:-1]) for values in (steady, single)]
    # A variance of 0.01 for 0.25, mixed with half a problem out of 40.
    share = (0.04 * 40 + 0.5) / 40.5
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(share), rel=0.05)


@pytest.mark.parametrize("interval", BOTH)
def test_missing_values_are_left_out(interval: Interval) -> None:
    values = np.array([0.2, 0.9, 0.4, 0.7])
    gaps = np.array([0.2, np.nan, 0.9, 0.4, np.nan, 0.7])
    assert interval(gaps) == pytest.approx(interval(values))


@pytest.mark.parametrize("interval", BOTH)
def test_one_problem_has_no_interval_and_none_no_mean(interval: Interval) -> None:
    one, none = interval(np.array([[0.5], [np.nan]])), interval(np.full((3, 1), np.nan))
    assert one[0] == 0.5
    assert np.isnan([*one[1:], *none]).all()


@pytest.mark.parametrize(("value", "problems"), [(0.0, 30), (1.0, 30), (0.0, 500)])
def test_all_wrong_or_all_right_is_not_certain(value: float, problems: int) -> None:
    _, low, high = accuracy_interval(np.full(problems, value))
    inner, edge = (high, low) if value == 0.0 else (low, high)
    assert edge == pytest.approx(value)
    # The rule of three gives 3 / P; Wilson's interval t squared / (P + t squared).
    t2 = stats.t.ppf(0.975, problems - 1) ** 2
    assert abs(inner - value) == pytest.approx(t2 / (problems + t2))


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(2, 12)), elements=st.floats(0, 1)),
    st.booleans(),
)
def test_an_accuracys_interval_lies_in_bounds_and_is_symmetric(values: Floats, turn: bool) -> None:
    mean, low, high = accuracy_interval(1 - values if turn else values)
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    mirrored = accuracy_interval(values if turn else 1 - values)
    assert (low, high) == pytest.approx((1 - mirrored[2], 1 - mirrored[1]), abs=1e-9)


def coverage(mix: tuple[float, float], problems: int, samples: int) -> tuple[float, float]:
    """How often the intervals hold the mix's accuracy: Wilson's, and Student's t.

    samples: answers of which a problem's value is the mean; 1 for a vote at full N.
    """
    rng = np.random.default_rng(17)
    chances = rng.beta(*mix, (problems, REPETITIONS))
    values = rng.binomial(samples, chances) / samples
    truth, held = mix[0] / sum(mix), []
    for interval in BOTH:
        _, low, high = interval(values)
        held.append(float(np.mean((low <= truth) & (truth <= high))))
    return held[0], held[1]


@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize("problems", [40, 100, 500])
@pytest.mark.parametrize("mix", MIXES)
def test_the_interval_holds_the_truth_as_often_as_it_says(
    mix: str, problems: int, samples: int
) -> None:
    wilson, _ = coverage(MIXES[mix], problems, samples)
    assert 0.93 - CHANCE / 4 < wilson < 0.97 + CHANCE / 4, wilson


@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize(
    ("mix", "problems"), [("hard", 10), ("easy", 10), ("skewed", 5), ("even", 5)]
)
def test_with_few_problems_it_is_too_wide_and_never_too_narrow(
    mix: str, problems: int, samples: int
) -> None:
    wilson, _ = coverage(MIXES[mix], problems, samples)
    assert wilson > 0.93, wilson


@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize("problems", [10, 30, 100])
def test_near_zero_it_is_right_where_students_t_is_not(problems: int, samples: int) -> None:
    """One problem in forty is solved: the mix of a small policy on a competition."""
    wilson, students = coverage((0.1, 3.9), problems, samples)
    assert wilson > 0.94, wilson
    assert students < 0.93, students
