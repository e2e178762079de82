"""`progress.json` in a run folder: how far a run is, for those who look from elsewhere.

Invariant: it is no part of the run: nothing that runs waits for it or reads it, it is gone when a
run has ended, and whoever reads it takes a damaged one for none.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Self

from pydantic import TypeAdapter

from cluster.flight import InFlight
from jobs.progress import Tally
from jobs.storage import Storage
from search.errors import StorageError

NAME = "progress.json"


@dataclass(frozen=True, slots=True)
class Searching:
    """How far a policy's searches are. Speeds are those of the last minute."""

    problems: int
    units: int
    tally: Tally
    in_flight: InFlight
    policy_tokens_s: float
    prm_tokens_s: float
    silent_s: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class RunProgress:
    """What progress.json holds. Times are ISO 8601 in UTC.

    doing: what goes on now, in words. policies: the ladder; place: the one it is at, from 1.
    seconds: since this process began. every_s: how often the file is written.
    """

    run_id: str
    doing: str
    policies: tuple[str, ...]
    place: int
    seconds: float
    every_s: float
    written_at: str
    searching: Searching | None = None
    replicas: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def policy(self) -> str:
        """The policy that it is at."""
        return self.policies[self.place - 1] if 0 < self.place <= len(self.policies) else ""

    @classmethod
    def of(cls, text: bytes) -> Self:
        """Raises ValueError for what is none."""
        found: Self = TypeAdapter(cls).validate_json(text)
        return found

    def as_json(self) -> bytes:
        """What the file holds."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


def read_progress(folder: Storage) -> RunProgress | None:
    """What the file says; None if it is not there or is none. Raises StorageError."""
    try:
        return RunProgress.of(folder.read(NAME).to_pybytes())
    except ValueError:
        return None
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
