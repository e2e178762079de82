"""Room for replicas, machine by machine: whole GPUs, parts of GPUs, cores."""

import pytest

from actors.spec import ModelSpec
from cluster.packing import Machine, Unplaced, packed

pytestmark = pytest.mark.unit

Model = tuple[float, int]


def spec_of(gpus: float, replicas: int, cpus: float = 1, name: str = "one") -> ModelSpec:
    return ModelSpec(
        name, "m", "fake", "float64", replicas, gpus_per_replica=gpus, cpus_per_replica=cpus
    )


def machines_of(*gpus: int, cores: float = 64) -> list[Machine]:
    return [Machine(cores, (1.0,) * count) for count in gpus]


@pytest.mark.parametrize(
    ("gpus", "models"),
    [
        ((1,), [(0.5, 2)]),
        ((1,), [(0.5, 1), (0.25, 2)]),
        ((1,), [(0.1, 10)]),
        ((2,), [(0.6, 2)]),
        ((2, 2), [(1, 2), (2, 1)]),
        ((2, 2), [(0.5, 3), (1, 1), (1, 1)]),
        ((8,), [(4, 1), (4, 1)]),
        ((1, 4), [(1, 1), (4, 1)]),
        ((0, 1), [(0, 8), (1, 1)]),
    ],
)
def test_replicas_that_fit(gpus: tuple[int, ...], models: list[Model]) -> None:
    found = packed(machines_of(*gpus), [spec_of(*model) for model in models])
    assert not isinstance(found, Unplaced)
    lent = sum(sum(machine.gpus) for machine in found)
    assert lent == pytest.approx(sum(gpus) - sum(size * count for size, count in models))


@pytest.mark.parametrize(
    ("gpus", "models", "name", "placed"),
    [
        ((2, 2), [(4, 1)], "0", 0),
        ((1,), [(0.6, 2)], "0", 1),
        ((2,), [(0.4, 5)], "0", 4),
        ((2,), [(0.5, 1), (2, 1)], "1", 0),
        ((2, 2), [(1, 3), (2, 1)], "1", 0),
        ((3, 3), [(2, 3)], "0", 2),
        ((), [(0, 1)], "0", 0),
    ],
)
def test_replicas_that_do_not_fit(
    gpus: tuple[int, ...], models: list[Model], name: str, placed: int
) -> None:
    specs = [spec_of(*model, name=str(place)) for place, model in enumerate(models)]
    found = packed(machines_of(*gpus), specs)
    assert isinstance(found, Unplaced)
    assert (found.spec.name, found.placed) == (name, placed)


def test_cores_count_machine_by_machine() -> None:
    two = machines_of(0, 0, cores=3)
    assert isinstance(packed(two, [spec_of(0, 1, cpus=4)]), Unplaced)
    assert packed(two, [spec_of(0, 2, cpus=3)]) == (Machine(0), Machine(0))


def test_a_replica_goes_where_it_leaves_the_least_room() -> None:
    found = packed([Machine(8, (1.0,) * 4), Machine(8, (1.0,))], [spec_of(1, 1)])
    assert found == (Machine(8, (1.0,) * 4), Machine(7, (0.0,)))
