"""The table `samples` in one piece, where a test has room for it."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from jobs.samples import samples_in_parts
from search.schemas import SAMPLES


def samples_of_parts(
    parts: Iterable[pa.Table], problem_ids: Sequence[str] | None, strength: float
) -> pa.Table:
    """See `jobs.samples.samples_in_parts`."""
    tables = samples_in_parts(parts, problem_ids, strength)
    return pa.concat_tables([SAMPLES.empty_table(), *tables]).combine_chunks()
