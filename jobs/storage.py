"""A folder of files on this machine or on any store that pyarrow opens (S3, GCS, ...).

Invariant: a file that can be seen is whole. It is written under another name and renamed, or the
store shows it only when all of it is there. What fails for a while is tried again.
"""

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import stamina
from pyarrow import fs

from jobs.store_uris import child_of, is_final, is_uri, opened, reason, shown, without_secrets
from search.errors import StorageError, one_line

# How long a store may be away before a run gives up, and the longest wait between two tries.
PATIENCE_S = 300.0
LONGEST_WAIT_S = 10.0
# With checksums, what a disk or a hand has changed since is an error, and not other numbers.
PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
_UNWRITTEN = ".unwritten"
log = logging.getLogger("branchwise")
_PASSING = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EAGAIN, errno.EBUSY}
_PASSING |= {errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH}
# Errors of a store have no number: they are known by its words.
_FROM_A_STORE = ("AWS Error", "google::cloud", "Azure")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder. `where` is how a reader calls it: a path, or a URI without credentials.

    patience_s: how long what fails is tried again.
    """

    where: str
    _files: fs.FileSystem
    _path: str
    patience_s: float = PATIENCE_S

    def __str__(self) -> str:
        return self.where

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._path.rsplit("/", 1)[-1]

    @property
    def here(self) -> Path | None:
        """Its path, if it lies on this machine."""
        if not isinstance(self._files, fs.LocalFileSystem):
            return None
        return Path(self._path if is_uri(self.where) else self.where)

    @property
    def at_once(self) -> "Storage":
        """The same folder for one who does not wait for a store that is away."""
        return replace(self, patience_s=0.0)

    def child(self, name: str) -> "Storage":
        """A folder in this one; it need not be there."""
        return replace(self, where=self.called(name), _path=self._at(name))

    def called(self, name: str) -> str:
        """How a reader calls a file in it."""
        return child_of(self.where, name)

    def names(self) -> list[str]:
        """What lies in it, in order; nothing if it is not there. Half-written files are none."""
        return sorted(self.written_at())

    def written_at(self) -> dict[str, float]:
        """When each file in it was written, in seconds, by the clock of the store."""
        selector = fs.FileSelector(self._path, allow_not_found=True)
        found = self._tried("list", lambda: self._files.get_file_info(selector))
        times = {each.base_name: (each.mtime_ns or 0) / 1e9 for each in found}
        return {name: time for name, time in times.items() if not name.endswith(_UNWRITTEN)}

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._type(name) == fs.FileType.File)

    def lacks(self, name: str) -> bool:
        """Whether nothing has that name, not even a link to nothing."""
        if isinstance(self._files, fs.LocalFileSystem):
            return not os.path.lexists(self._at(name))
        return bool(self._type(name) == fs.FileType.NotFound)

    def read(self, name: str) -> pa.Buffer:
        """A whole file; raises StorageError."""

        def read() -> pa.Buffer:
            try:
                with self._files.open_input_file(self._at(name)) as file:
                    return file.read_buffer()
            except FileNotFoundError:
                raise
            except OSError as error:
                # A store says many things of a file that goes once it is opened.
                if self._has_gone(name):
                    raise FileNotFoundError(name) from error
                raise

        with self._reading(name):
            return self._again(f"read {name} in", read)

    def read_parquet(self, name: str, read: Callable[[pq.ParquetFile], Answer]) -> Answer:
        """What a function reads of a Parquet file, asked again if the store was away; raises
        StorageError."""

        def read_it() -> Answer:
            with self._opened(name) as parts:
                return read(parts)

        with self._reading(name):
            return self._again(f"read {name} in", read_it)

    @contextlib.contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """A Parquet file, opened to be read in parts; raises StorageError."""
        with self._reading(name), self._opened(name) as parts:
            yield parts

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """A whole file, in the place of what had its name; raises StorageError."""

        def write() -> None:
            with self._files.open_output_stream(self._at(name)) as file:
                file.write(content)

        if isinstance(self._files, fs.LocalFileSystem):
            self._tried(f"write {name} in", lambda: _write_here(Path(self._at(name)), content))
        else:
            self._tried(f"write {name} in", lambda: _uninterrupted(write))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        """A file to be written piece by piece, which is there when the context ends well.

        For a store the pieces wait in a temporary file of this machine: what is closed there is
        complete, so that half a file cannot be taken back. Sending them is tried again, writing a
        piece is not: it cannot be asked for twice.
        """
        if not isinstance(self._files, fs.LocalFileSystem):
            with tempfile.TemporaryDirectory(prefix="branchwise-") as folder:
                pieces = f"{folder}/pieces"
                with self._named(f"write {name} in"), pa.OSFile(pieces, "wb") as file:
                    yield file
                self._tried(f"write {name} in", lambda: self._send(pieces, name))
            return
        whole, unwritten = self._at(name), self._at(name) + _UNWRITTEN
        with self._named(f"write {name} in"):
            Path(unwritten).parent.mkdir(parents=True, exist_ok=True)
            with self._files.open_output_stream(unwritten) as file:
                yield file
            _name_on_disk(Path(unwritten), Path(whole))

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

    def remove_if_empty(self) -> None:
        """Removes the folder itself if nothing is in it; on a store a folder's mark stays.

        A store cannot ask and remove in one go: what came in between would go with the folder.
        """
        if isinstance(self._files, fs.LocalFileSystem):
            with contextlib.suppress(OSError):
                os.rmdir(self._path)

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _has_gone(self, name: str) -> bool:
        """Whether the store says so; a store that is away does not."""
        with contextlib.suppress(OSError):
            [info] = self._files.get_file_info([self._at(name)])
            return bool(info.type == fs.FileType.NotFound)
        return False

    def _type(self, name: str) -> fs.FileType:
        [info] = self._tried("read", lambda: self._files.get_file_info([self._at(name)]))
        return info.type

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[pq.ParquetFile]:
        is_far = not isinstance(self._files, fs.LocalFileSystem)
        with (
            self._files.open_input_file(self._at(name)) as file,
            pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=is_far) as parts,
        ):
            yield parts

    def _send(self, pieces: str, name: str) -> None:
        """A file of this machine to the store; half of it is an error, to be sent again."""
        here = fs.LocalFileSystem()
        fs.copy_files(
            pieces, self._at(name), source_filesystem=here, destination_filesystem=self._files
        )
        [sent], size = self._files.get_file_info([self._at(name)]), os.path.getsize(pieces)
        if sent.size != size:
            raise OSError(errno.EIO, f"{sent.size} of {size} bytes arrived")

    def _again(self, what: str, act: Callable[[], Answer]) -> Answer:
        """The act, again and again while the store may come back; says so once."""
        attempts = stamina.retry_context(
            on=_may_come_back,
            attempts=None if self.patience_s else 1,
            timeout=self.patience_s or None,
            wait_max=LONGEST_WAIT_S,
        )
        for attempt in attempts:
            with attempt, self._telling(what, attempt.num):
                return act()
        raise AssertionError("a retry ends with an answer or an error")

    def _tried(self, what: str, act: Callable[[], Answer]) -> Answer:
        """The act as often as it needs; names the border it crossed."""
        with self._named(what):
            return self._again(what, act)

    @contextlib.contextmanager
    def _telling(self, what: str, attempt: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if attempt == 1 and self.patience_s and _may_come_back(error):
                line = "cannot %s %s, it is tried again for %.0f s: %s"
                log.warning(line, what, self.where, self.patience_s, one_line(reason(error)))
            raise

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot {what} {self.where}: {reason(error)}") from error

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(f"cannot read {self.called(name)}: it is not there") from error
        except (OSError, ValueError, MemoryError, OverflowError, pa.ArrowException) as error:
            line = one_line(reason(error))
            raise StorageError(f"cannot read {self.called(name)}: {line}") from error


Where: TypeAlias = Storage | str | Path


def storage_at(where: Where, patience_s: float = PATIENCE_S) -> Storage:
    """The folder at a path or a URI; raises StorageError if nothing can open it."""
    if isinstance(where, Storage):
        return where
    text = str(where)
    if not is_uri(text):
        path = os.path.abspath(where)
        return Storage(str(Path(text)), fs.LocalFileSystem(), path, patience_s)
    try:
        files, path = opened(text)
    except (OSError, ValueError, pa.ArrowException) as error:
        line = reason(without_secrets(error, text))
        raise StorageError(f"cannot open {shown(text)}: {line}") from None
    return Storage(shown(text), files, path, patience_s)


def folder_to_read(where: Where) -> Storage:
    """The same for one who reads and does not wait for a store that is away."""
    return storage_at(where, patience_s=0.0)


def _may_come_back(error: Exception) -> bool:
    """A disk that is full or a store that does not answer, but not what is missing or forbidden."""
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError | PermissionError):
        return False
    if error.errno is not None:
        return error.errno in _PASSING
    words = str(error)
    return any(word in words for word in _FROM_A_STORE) and not is_final(words)


def _uninterrupted(act: Callable[[], None]) -> None:
    """In a thread: an interrupt between opening and closing would complete half a file."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(act).result()


def _write_here(path: Path, content: bytes | pa.Buffer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unwritten = path.with_name(path.name + _UNWRITTEN)
    unwritten.write_bytes(content)
    _name_on_disk(unwritten, path)


def _name_on_disk(unwritten: Path, path: Path) -> None:
    """On the disk before it has its name, so that a machine that stops leaves no half."""
    with unwritten.open("rb+") as file:
        os.fsync(file.fileno())
    unwritten.replace(path)
