"""What a fake engine was asked and what it answered, line by line in a file of its own.

Faults are measured by it: what was asked twice, and how soon after the loss. Invariant: a line is
in the file before the engine goes on, so that the ledger of a killed process is whole.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path


class Ledger:
    """Lines of one engine; without a folder nothing is written."""

    def __init__(self, role: str, folder: str) -> None:
        self._file: int | None = None
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            name = f"{role}-{os.getpid()}-{time.time_ns()}.jsonl"
            self._file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT)

    def asked(self, *request: object) -> str:
        """Notes a request; returns its name, which is the same whoever asks it again."""
        if self._file is None:
            return ""
        key = hashlib.blake2b(repr(request).encode(), digest_size=12).hexdigest()
        self._note({"at_s": time.time(), "asked": key})
        return key

    def answered(self, key: str, tokens: Iterable[int]) -> None:
        """Notes that it has been answered, with so many tokens each; counted if it is noted."""
        if self._file is not None:
            self._note({"at_s": time.time(), "answered": key, "tokens": sum(tokens)})

    def _note(self, line: dict[str, object]) -> None:
        assert self._file is not None
        os.write(self._file, f"{json.dumps(line)}\n".encode())
