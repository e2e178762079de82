"""The scaling benchmark at toy size, in virtual time only."""

import pytest

from benchmarks.scaling import TOY, main, virtual

pytestmark = pytest.mark.unit


def test_more_replicas_with_more_work_take_about_as_long() -> None:
    one, two = virtual(TOY, "weak")
    assert (one.replicas, two.replicas) == (1, 2)
    assert min(two.efficiency) > 0.5


def test_one_problem_is_quicker_on_two_replicas() -> None:
    one, two = virtual(TOY, "strong")
    assert max(two.seconds) < 1.1 * min(one.seconds)


def test_the_command_prints_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--toy"])
    printed = capsys.readouterr().out
    assert printed.count("weak, virtual") == printed.count("strong, virtual") == 2
