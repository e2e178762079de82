"""What a work unit leaves, and how it travels from the worker to the driver.

Invariant: what arrives is what was sent. Tables go as Arrow's stream format, in one piece each: Ray
would take each apart column by column, at fifty times the processor time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from search.partition import WorkUnit


@dataclass(frozen=True, slots=True)
class UnitTables:
    """What a work unit leaves: nodes and solutions (none if it failed), and one `units` row."""

    unit: WorkUnit
    nodes: pa.Table
    solutions: pa.Table
    units: pa.Table

    @property
    def failed(self) -> bool:
        return bool(self.units["status"][0].as_py() == "error")

    @property
    def reason(self) -> str:
        """Why it failed."""
        return str(self.units["error"][0].as_py())

    @property
    def attempts(self) -> int:
        """How often it was started."""
        return int(self.units["attempts"][0].as_py())

    def after(self, attempts: int) -> "UnitTables":
        """The same with so many attempts more, which came before."""
        if not attempts:
            return self
        place = self.units.schema.get_field_index("attempts")
        counted = pa.array([self.attempts + attempts], pa.int32())
        return replace(self, units=self.units.set_column(place, "attempts", counted))

    def __reduce__(self) -> "tuple[Callable[..., UnitTables], tuple[WorkUnit | bytes, ...]]":
        return _arrived, (self.unit, *map(_packed, (self.nodes, self.solutions, self.units)))


def _arrived(unit: WorkUnit, *tables: bytes) -> UnitTables:
    return UnitTables(unit, *map(_unpacked, tables))


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _unpacked(table: bytes) -> pa.Table:
    with pa.ipc.open_stream(table) as stream:
        return stream.read_all()
