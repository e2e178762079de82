"""What a work unit leaves arrives as it was sent."""

import asyncio
import pickle

import pyarrow as pa
import pytest

from cluster.fanout import Site, _run_unit, failed_unit
from cluster.unit_tables import UnitTables
from search.config import SearchConfig
from search.growth import Growth
from search.partition import WorkUnit, partition, run_unit
from search.problem import Problem
from search.rewards import Reduction
from search.schemas import NODES, SOLUTIONS, UNITS
from search.scripted import SeededPolicy, SeededPRM

pytestmark = pytest.mark.unit

SITE = Site("fake", "policy", "prm", 0, 0, unit_timeout_s=60)


@pytest.fixture(scope="module")
def unit() -> WorkUnit:
    config = SearchConfig("dvts", 8, 4, 2, Reduction.LAST, 1)
    [unit] = partition(Problem("p0", "1 + 1 =", "2"), config, 8)
    return unit


@pytest.fixture(scope="module")
def searched(unit: WorkUnit) -> UnitTables:
    async def grow(unit: WorkUnit) -> Growth:
        return await run_unit(unit, SeededPolicy(), SeededPRM())

    return asyncio.run(_run_unit(unit, SITE, grow))


def arrived(tables: UnitTables) -> UnitTables:
    there: UnitTables = pickle.loads(pickle.dumps(tables))
    return there


def test_a_searched_unit_arrives_whole(searched: UnitTables) -> None:
    there = arrived(searched)
    assert there.unit == searched.unit
    assert there.nodes.num_rows
    assert there.solutions.num_rows == 8
    for name, schema in (("nodes", NODES), ("solutions", SOLUTIONS), ("units", UNITS)):
        assert getattr(there, name).equals(getattr(searched, name), check_metadata=True)
        assert getattr(there, name).schema.equals(schema, check_metadata=True)


def test_a_failed_unit_arrives_with_its_reason(unit: WorkUnit) -> None:
    there = arrived(failed_unit(unit, SITE, ValueError("no text"), 1.0))
    assert there.failed
    assert there.reason == "ValueError: no text"
    assert there.nodes.equals(NODES.empty_table())


def test_rows_of_many_chunks_arrive_in_order(searched: UnitTables) -> None:
    nodes = pa.concat_tables([searched.nodes, searched.nodes])
    there = arrived(UnitTables(searched.unit, nodes, searched.solutions, searched.units))
    assert there.nodes.equals(nodes)


def test_a_table_holds_no_other(searched: UnitTables) -> None:
    there = arrived(searched)
    assert there.units.nbytes < there.units.get_total_buffer_size() < there.nodes.nbytes
