"""A finished run folder, written in one go from rows that a test makes up."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from jobs.results import RunRecord, write_table
from jobs.run_writer import check_columns
from search.schemas import TABLES

# The others are made of these.
ADDED = ("problems", "nodes", "solutions", "units", "routes", "stops")


class WrittenRun:
    """Rows by table; the files are there when the context ends."""

    def __init__(self, runs_folder: Path, record: RunRecord) -> None:
        self.folder, self._record = runs_folder / record.run_id, record
        self._rows: defaultdict[str, list[pa.Table]] = defaultdict(list)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._write_record("")
        return self

    def add(self, name: str, rows: pa.Table) -> None:
        check_columns(name, rows, TABLES)
        self._rows[name].append(rows)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in ADDED:
            rows = pa.concat_tables([TABLES[name].empty_table(), *self._rows[name]])
            write_table(self.folder, name, rows.combine_chunks())

    def finish(self) -> None:
        self._write_record(self._record.started_at)

    def _write_record(self, finished_at: str) -> None:
        document = asdict(self._record) | {"finished_at": finished_at}
        (self.folder / "run.json").write_text(json.dumps(document))
