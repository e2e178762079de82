"""A folder of files on this machine or on any store that pyarrow opens (S3, GCS, ...).

Invariant: a file that can be seen is whole. It is written under another name and renamed, or the
store shows it only when all of it is there. What fails for a while is tried again.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import stamina
from pyarrow import fs

from search.errors import StorageError

# How long a store may be away before a run gives up, and the longest wait between two tries.
PATIENCE_S = 300.0
LONGEST_WAIT_S = 10.0
# With checksums, what a disk or a hand has changed since is an error, and not other numbers.
PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
_UNWRITTEN = ".unwritten"
_PASSING = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EAGAIN, errno.EBUSY}
_PASSING |= {errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH}
_FOR_GOOD = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE", "FORBIDDEN")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder. `where` is how a reader calls it: a path or a URI.

    patience_s: how long what fails is tried again.
    """

    where: str
    _files: fs.FileSystem
    _path: str
    patience_s: float = PATIENCE_S

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._path.rsplit("/", 1)[-1]

    def child(self, name: str) -> "Storage":
        """A folder in this one; it need not be there."""
        return replace(self, where=f"{self.where}/{name}", _path=f"{self._path}/{name}")

    def names(self) -> list[str]:
        """What lies in it, in order; nothing if it is not there. Half-written files are none."""
        selector = fs.FileSelector(self._path, allow_not_found=True)
        found = self._tried("list", lambda: self._files.get_file_info(selector))
        names = [each.base_name for each in found]
        return sorted(name for name in names if not name.endswith(_UNWRITTEN))

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        [info] = self._tried("read", lambda: self._files.get_file_info([self._at(name)]))
        return bool(info.type == fs.FileType.File)

    def read(self, name: str) -> pa.Buffer:
        """A whole file; raises StorageError."""

        def read() -> pa.Buffer:
            with self._files.open_input_file(self._at(name)) as file:
                return file.read_buffer()

        return self._tried(f"read {name} of", read)

    @contextlib.contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """A Parquet file, opened to be read in parts; raises StorageError."""
        file = self._tried(f"read {name} of", lambda: self._files.open_input_file(self._at(name)))
        with self._named(f"read {name} of"), file, _opened(file) as parts:
            yield parts

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """A whole file, in the place of what had its name; raises StorageError."""

        def write() -> None:
            if isinstance(self._files, fs.LocalFileSystem):
                _write_here(Path(self._at(name)), content)
                return
            with self._files.open_output_stream(self._at(name)) as file:
                file.write(content)

        self._tried(f"write {name} in", write)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        """A file to be written piece by piece, which is there when the context ends well."""
        whole, unwritten = self._at(name), self._at(name) + _UNWRITTEN
        with self._named(f"write {name} in"):
            if not isinstance(self._files, fs.LocalFileSystem):
                with self._files.open_output_stream(whole) as file:
                    yield file
                return
            Path(unwritten).parent.mkdir(parents=True, exist_ok=True)
            with self._files.open_output_stream(unwritten) as file:
                yield file
            Path(unwritten).replace(whole)

    def delete(self, name: str) -> None:
        """Removes a file, or a folder with all that is in it; nothing if it is not there."""

        def delete() -> None:
            [info] = self._files.get_file_info([self._at(name)])
            if info.type == fs.FileType.Directory:
                self._files.delete_dir(self._at(name))
            elif info.type == fs.FileType.File:
                self._files.delete_file(self._at(name))

        self._tried(f"delete {name} in", delete)

    def remove(self) -> None:
        """Removes the folder itself with all that is in it."""

        def remove() -> None:
            if self._files.get_file_info(self._path).type == fs.FileType.Directory:
                self._files.delete_dir(self._path)

        self._tried("remove", remove)

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _tried(self, what: str, act: Callable[[], Answer]) -> Answer:
        """The act, again and again while the store may come back; names the border it crossed."""
        attempts = stamina.retry_context(
            on=_may_come_back,
            attempts=None if self.patience_s else 1,
            timeout=self.patience_s or None,
            wait_max=LONGEST_WAIT_S,
        )
        with self._named(what):
            for attempt in attempts:
                with attempt:
                    return act()
        raise AssertionError("a retry ends with an answer or an error")

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise StorageError(f"cannot {what} {self.where}: {reason}") from error


def storage_at(where: str | Path) -> Storage:
    """The folder at a path or a URI; raises StorageError if nothing can open it."""
    try:
        if "://" not in str(where):
            return Storage(str(where), fs.LocalFileSystem(), os.path.abspath(where))
        files, path = fs.FileSystem.from_uri(str(where))
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot open {where}: {error}") from error
    return Storage(str(where).rstrip("/"), files, path.rstrip("/"))


def _opened(file: pa.NativeFile) -> pq.ParquetFile:
    return pq.ParquetFile(file, page_checksum_verification=True)


def _may_come_back(error: Exception) -> bool:
    """A disk that is full or a store that does not answer, but not what is missing or forbidden.

    Errors of a store have no number; what it says for good is known by its words.
    """
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError | PermissionError):
        return False
    if error.errno is not None:
        return error.errno in _PASSING
    return not any(word in str(error) for word in _FOR_GOOD)


def _write_here(path: Path, content: bytes | pa.Buffer) -> None:
    """On the disk before it has its name, so that a machine that stops leaves no half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unwritten = path.with_name(path.name + _UNWRITTEN)
    with unwritten.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unwritten.replace(path)
