"""Who may write to a run folder: one process at a time, whatever machine it is on."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs.commit_log import CommitLog
from jobs.storage import Storage, storage_at
from jobs.writer_lease import LEASE_S, Claim, Process, WriterLease, this_process
from search.errors import StorageError

pytestmark = pytest.mark.unit

FAR = Process("far", "another system", 17, 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return storage_at(tmp_path / "run")


def claim_files(folder: Storage) -> list[Path]:
    assert folder.here
    return sorted((folder.here / "writers").glob("*.json"))


def silence(folder: Storage, seconds: float) -> None:
    """Makes all claims look as if they had been renewed so long ago."""
    for path in claim_files(folder):
        written = path.stat().st_mtime - seconds
        os.utime(path, (written, written))


def test_a_folder_is_given_up_without_a_trace(folder: Storage, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lease = WriterLease(folder).take()
    [path] = claim_files(folder)
    claim = Claim.of(json.loads(path.read_text()))
    assert (claim.process, claim.writes) == (this_process(), True)
    lease.check()
    lease.release()
    assert list((tmp_path / "run").iterdir()) == []


def test_another_machine_is_left_alone_while_it_renews(folder: Storage) -> None:
    lease = WriterLease(folder, FAR).take()
    silence(folder, 25)
    line = r"written to by process 17 on far, heard of 2\d s ago: .*run again in 3\d s$"
    with pytest.raises(StorageError, match=line):
        WriterLease(folder).take()
    assert len(claim_files(folder)) == 1
    lease.check()
    lease.release()


def test_a_silent_machine_is_replaced_and_learns_of_it(folder: Storage) -> None:
    lost = WriterLease(folder, FAR).take()
    lost.stop()
    silence(folder, LEASE_S + 1)
    lease = WriterLease(folder).take()
    log = CommitLog(folder, lost.check)
    with pytest.raises(StorageError, match=f"was taken over by process {os.getpid()} on"):
        log.commit({})
    assert CommitLog(folder).is_empty
    assert lost.is_lost
    lost.release()
    lease.check()
    lease.release()


def test_a_claim_that_comes_back_after_it_was_replaced_does_not_count(folder: Storage) -> None:
    lost = WriterLease(folder, FAR).take()
    lost.stop()
    [old] = claim_files(folder)
    content = old.read_bytes()
    silence(folder, LEASE_S + 1)
    lease = WriterLease(folder).take()
    old.write_bytes(content)  # it was about to be renewed when it was removed
    with pytest.raises(StorageError, match="was taken over"):
        lost.check()
    lease.check()
    lost.release()
    lease.release()


def test_a_killed_process_of_this_machine_is_replaced_at_once(folder: Storage) -> None:
    own = this_process()
    killed = Process(own.host, own.machine, own.pid, own.started - 1e6)
    for pid in (own.pid, os.getppid()):
        other = Process(killed.host, killed.machine, pid, killed.started)
        claim = json.dumps(asdict(Claim(other, writes=True, replaced=())))
        folder.child("writers").write("old.json", claim.encode())
        lease = WriterLease(folder).take()
        assert len(claim_files(folder)) == 1
        lease.release()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"process": {"host": 3}}'])
def test_what_is_no_claim_is_none(folder: Storage, content: bytes) -> None:
    folder.child("writers").write("x.json", content)
    lease = WriterLease(folder).take()
    assert [path.name for path in claim_files(folder)] != ["x.json"]
    lease.check()
    lease.release()


def test_a_claim_is_renewed_until_it_is_released(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.writer_lease.RENEWAL_S", 0.01)
    lease = WriterLease(folder, FAR).take()
    silence(folder, LEASE_S + 1)
    [path] = claim_files(folder)
    while time.time() - path.stat().st_mtime > LEASE_S:
        time.sleep(0.01)
    with pytest.raises(StorageError, match="run again in"):
        WriterLease(folder).take()
    lease.release()


def test_of_many_that_claim_at_once_one_writes(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.writer_lease.TURNS", 1000)
    for _ in range(5):
        start = threading.Barrier(6)

        def claim(number: int, start: threading.Barrier = start) -> WriterLease | None:
            start.wait()
            try:
                return WriterLease(folder, Process(f"host{number}", "", number, 1.0)).take()
            except StorageError:
                return None

        with ThreadPoolExecutor(6) as threads:
            winners = [lease for lease in threads.map(claim, range(6)) if lease]
        assert len(winners) == 1
        winners[0].check()
        winners[0].release()
