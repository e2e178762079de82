"""Each fault strikes a DVTS run with N = 64 on three Ray nodes: it ends complete and equal."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.kinds import FAULTS, Fault, may_mount
from benchmarks.faults.measure import Outcome, disturbed, undisturbed
from benchmarks.faults.soak import schedule, soak_round
from benchmarks.faults.world import UNITS_IN_FLIGHT, Finished, Size, World, world

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_ray_token"),
    pytest.mark.timeout(900),
    # Ray leaves sockets and processes of its test cluster to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]
SIZE = Size(problems=8)
LASTS_S = 6.0
# What is lost with calls or tasks under way, so that something must be done again.
LOSES = {"worker process killed", "node lost", "policy replica killed", "policy replica hangs"}


@pytest.fixture(scope="module")
def three_nodes(no_ray_token: None) -> Iterator[World]:
    with world() as found:
        yield found


@pytest.fixture(scope="module")
def plain(three_nodes: World, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return undisturbed(three_nodes, tmp_path_factory.mktemp("plain"), SIZE)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_run_survives(three_nodes: World, plain: Finished, tmp_path: Path, fault: Fault) -> None:
    if fault.needs_mount and not may_mount():
        pytest.skip("only root may mount a file system of its own")
    found = disturbed(three_nodes, tmp_path, SIZE, fault, plain, LASTS_S)
    assert found.is_equal, f"{found.unequal}: {found.log}"
    if fault.name in LOSES:
        assert found.policy.requests > 0, "the fault struck nothing"
    check_cost(found, fault, plain)


def check_cost(found: Outcome, fault: Fault, plain: Finished) -> None:
    """At most the units that were under way are done again, and what a driver had not committed."""
    if fault.name == "PRM returns garbage for a while":
        return
    lost = UNITS_IN_FLIGHT
    if fault.name == "driver killed":
        lost += uncommitted(plain)
    tokens = sorted(plain.run.units["generated_policy_tokens"].to_pylist(), reverse=True)
    assert found.policy.tokens_share <= sum(tokens[:lost]) / sum(tokens)
    assert found.units_redone <= UNITS_IN_FLIGHT


def uncommitted(plain: Finished) -> int:
    """Units that end while one commit is written and the next one is waited for."""
    units_a_s = plain.run.units.num_rows / plain.policy.span_s
    return math.ceil(2 * SIZE.checkpoint_interval_s * units_a_s)


def test_a_run_survives_faults_at_random(
    three_nodes: World, plain: Finished, tmp_path: Path
) -> None:
    faults = [fault for fault in FAULTS if not fault.needs_mount]
    found = soak_round(three_nodes, tmp_path, SIZE, faults, plain, seed=3)
    assert len(found.struck) == 4
    assert found.outcome.is_equal, str(found)


def test_a_schedule_is_decided_by_its_seed() -> None:
    assert schedule(FAULTS, 5) == schedule(FAULTS, 5)
    assert schedule(FAULTS, 5) != schedule(FAULTS, 6)
