"""Who writes to a run folder: a claim in it, which its process renews for as long as it writes.

A claim is a file of its own, `writers/<token>.json`. Who wants to write puts up a claim, then lists
them all, and writes if no other one counts. Of two that are put up at once, the one that lists last
sees the other, for a store shows a file as soon as it is written: never do both write. Of two that
see each other the lower token stays until the other has gone.

A claim counts while its process lives, if that is on this machine, and else for `LEASE_S` after it
was renewed. That is told by the store's clock alone: it says when a claim was written, and when the
one that looks put up its own. Who takes over removes the old claims and names them in its own.

Not guaranteed: a writer asks for its claim before each commit and once more before the file that
makes it count. One that is stopped for longer than `LEASE_S` between that question and that file
still writes the file: stores have no way to refuse it that all of them share.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from jobs.storage import Storage
from search.errors import StillRunningError, StorageError

FOLDER = "writers"
LEASE_S = 60.0
RENEWAL_S = 10.0
# Of two claims put up at once, how often the lower one looks whether the other has gone.
TURNS, TURN_S = 10, 0.3
# Start times of a process differ a little when the machine's clock is set.
_SAME_START_S = 2.0
_LONGEST_END_S = 5.0
log = logging.getLogger("branchwise")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of one machine; `machine` tells it from others of the same name."""

    host: str
    machine: str
    pid: int
    started: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_near(self, other: "Process") -> bool:
        """Whether both are seen by the same system, so that either can ask for the other."""
        return (self.host, self.machine) == (other.host, other.machine)

    def lives(self) -> bool:
        """Whether a process of this machine is there."""
        try:
            started = psutil.Process(self.pid).create_time()
        except psutil.Error:
            return False
        return bool(abs(started - self.started) < _SAME_START_S)


def this_process() -> Process:
    """The one that asks."""
    own = psutil.Process()
    return Process(socket.gethostname(), _machine(), own.pid, own.create_time())


@dataclass(frozen=True, slots=True)
class Claim:
    """What one process says: that it writes, or wants to. replaced: tokens that it took over."""

    process: Process
    writes: bool
    replaced: tuple[str, ...]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for what is no claim."""
        kinds = {"host": str, "machine": str, "pid": int, "started": float}
        process = {name: kind(document["process"][name]) for name, kind in kinds.items()}
        replaced = tuple(map(str, document["replaced"]))
        return cls(Process(**process), bool(document["writes"]), replaced)


class WriterLease:
    """The right of this process to write to a run folder, until it is released or lost."""

    def __init__(self, folder: Storage, process: Process | None = None) -> None:
        self._folder, self._claims = folder, folder.child(FOLDER)
        self._process, self._token = process or this_process(), secrets.token_hex(8)
        self._replaced: tuple[str, ...] = ()
        self._taken_by = ""
        self._ended, self._one_at_a_time = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)

    @property
    def is_lost(self) -> bool:
        """Whether another process was seen to have taken over."""
        return bool(self._taken_by)

    def take(self) -> Self:
        """Claims the folder, and renews that from now on; raises StillRunningError if it is taken.

        A store that nothing can be written to is found out here, at once and not after hours.
        """
        self._put(writes=False)
        try:
            self._replaced = tuple(self._others_that_count_no_more())
            self._put(writes=True)
            for token in self._replaced:
                self._claims.at_once.delete(_file(token))
        except BaseException:
            self._withdraw()
            raise
        self._thread.start()
        return self

    def check(self) -> None:
        """Raises StorageError if another process has taken over."""
        if not self._taken_by:
            self._look(self._claims)
        if self._taken_by:
            raise StorageError(
                f"{self._folder} was taken over by {self._taken_by} while this process was "
                f"silent for more than {LEASE_S:.0f} s: leave the run to it"
            )

    def writer_of(self, folder: Storage) -> str:
        """Who writes to another folder of the same store, in words; "" for nobody.

        Nothing is put up there: the times of its claims are held against that of this one.
        """
        claims = folder.child(FOLDER)
        now, times = _times(self._claims.at_once).get(self._token), _times(claims.at_once)
        if now is None or not times:
            return ""
        silent_s = {token: now - time_s for token, time_s in times.items()}
        live = self._live(silent_s, claims)
        first = min(live, key=silent_s.__getitem__, default=None)
        return "" if first is None else _heard_of(live[first], silent_s[first])

    def stop(self) -> None:
        """Ends the renewals; the claim stays."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_LONGEST_END_S)

    def release(self) -> None:
        """Gives the folder up; a claim that cannot be removed runs out."""
        self.stop()
        self._withdraw()

    def _keep_renewing(self) -> None:
        is_away = False
        while not self._ended.wait(RENEWAL_S):
            try:
                self._renew()
                is_away = False
            except StorageError as error:
                if not is_away:
                    log.warning("the claim on %s could not be renewed: %s", self._folder, error)
                is_away = True
            if self._taken_by:
                return

    def _renew(self) -> None:
        self._look(self._claims.at_once)
        if not self._taken_by and not self._ended.is_set():
            self._put(writes=True)

    def _look(self, claims: Storage) -> None:
        """Notes if this claim is gone, or was taken over."""
        with self._one_at_a_time:
            times = _times(claims)
            others = [_read(claims, token) for token in times if token != self._token]
        writers = [each for each in others if each and each.writes]
        takers = [each for each in writers if self._token in each.replaced]
        if takers or self._token not in times:
            found = [str(each.process) for each in (*takers, *writers)]
            self._taken_by = found[0] if found else "another process"

    def _others_that_count_no_more(self) -> list[str]:
        """Their tokens, when no other claim counts; raises StorageError if one does."""
        for _ in range(TURNS):
            times = _times(self._claims.at_once)
            if self._token not in times:
                raise StorageError(f"{self._folder} was removed at this moment: run again")
            silent_s = {token: times[self._token] - time_s for token, time_s in times.items()}
            live = self._live(silent_s)
            if not live:
                return [token for token in times if token != self._token]
            if min(live) < self._token or any(claim.writes for claim in live.values()):
                break
            time.sleep(TURN_S)
        token = min(live, key=lambda each: (not live[each].writes, each))
        raise StillRunningError(self._refusal(live[token], silent_s[token]))

    def _live(
        self, silent_s: Mapping[str, float], claims: Storage | None = None
    ) -> dict[str, Claim]:
        """The other claims that count. silent_s: how long before this one each was written."""
        claims = claims or self._claims
        others = {token: _read(claims.at_once, token) for token in silent_s}
        return {
            token: claim
            for token, claim in others.items()
            if token != self._token and claim and self._counts(claim, silent_s[token])
        }

    def _counts(self, claim: Claim, silent_s: float) -> bool:
        """Who is on this machine is asked for; of others is known when they were heard of."""
        if claim.process.is_near(self._process):
            return claim.process.pid != self._process.pid and claim.process.lives()
        return silent_s < LEASE_S

    def _refusal(self, claim: Claim, silent_s: float) -> str:
        line = (
            f"{self._folder} is being written to by {_heard_of(claim, silent_s)}: "
            "wait for it, or end it"
        )
        if claim.process.is_near(self._process):
            return line
        wait_s = max(1.0, LEASE_S - silent_s)
        return f"{line}; if it was killed, run again in {wait_s:.0f} s"

    def _put(self, writes: bool) -> None:
        claim = Claim(self._process, writes, self._replaced)
        text = json.dumps(asdict(claim), indent=2, sort_keys=True) + "\n"
        with self._one_at_a_time:
            self._claims.at_once.write(_file(self._token), text.encode())

    def _withdraw(self) -> None:
        with contextlib.suppress(StorageError):
            self._claims.at_once.delete(_file(self._token))
            self._claims.at_once.remove_if_empty()


def _heard_of(claim: Claim, silent_s: float) -> str:
    return f"{claim.process}, heard of {max(0.0, silent_s):.0f} s ago"


def living_writer(folder: Storage) -> Process | None:
    """Who writes to a run folder, for one who only reads; raises StorageError.

    A process of another machine counts by this machine's clock, which may differ from the store's.
    """
    claims, here, now_s = folder.child(FOLDER), this_process(), time.time()
    for token, time_s in _times(claims).items():
        claim = _read(claims, token)
        if claim is None or not claim.writes:
            continue
        is_near = claim.process.is_near(here)
        if claim.process.lives() if is_near else now_s - time_s < LEASE_S:
            return claim.process
    return None


def _file(token: str) -> str:
    return f"{token}.json"


def _times(claims: Storage) -> dict[str, float]:
    """When each claim was written, by its token."""
    return {Path(name).stem: time_s for name, time_s in claims.written_at().items()}


def _read(claims: Storage, token: str) -> Claim | None:
    """None for a claim that has gone meanwhile, and for what is none."""
    try:
        return Claim.of(json.loads(claims.read(_file(token)).to_pybytes().decode()))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _machine() -> str:
    """This start of this system, and in it the processes that see each other."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{start}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""
