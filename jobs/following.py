"""Following a submitted run: its log as it grows, its end, its exit code.

Invariant: every character of the log is written once, whatever the connection does meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import stamina

from jobs.ending import EXIT_STOPPED
from jobs.job_server import JobServer
from jobs.submissions import ENDED
from search.errors import ClusterError, one_line

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

EVERY_S = 1.0
# How long a job server may be away before a follower gives up.
PATIENCE_S = 120.0
log = logging.getLogger("branchwise")


def follow(server: JobServer, submission_id: str, write: Callable[[str], object]) -> "JobDetails":
    """Writes the log until the job has ended, and returns what it ended with; ClusterError."""
    return asyncio.run(_follow(server, submission_id, write))


async def _follow(
    server: JobServer, submission_id: str, write: Callable[[str], object]
) -> "JobDetails":
    seen = _Seen(write)
    while True:
        await _tail(server, submission_id, seen)
        details = await asyncio.to_thread(job_details, server, submission_id)
        if details.status.value in ENDED:
            # What was written between the last look at the log and the end.
            seen.from_start(await asyncio.to_thread(job_log, server, submission_id))
            return details
        await asyncio.sleep(EVERY_S)


class _Seen:
    """How much of a log was written: a log that is read again begins at its start."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self.characters = write, 0

    def from_start(self, text: str, start: int = 0) -> int:
        """Writes what is new of a piece that begins at `start`; returns where it ends."""
        end = start + len(text)
        if end > self.characters:
            self._write(text[max(0, self.characters - start) :])
            self.characters = end
        return end


async def _tail(server: JobServer, submission_id: str, seen: _Seen) -> None:
    """The log as it grows, until the job has ended or the connection has."""
    import aiohttp

    at = 0
    try:
        async for text in server.client.tail_job_logs(submission_id):
            at = seen.from_start(text, at)
    except (RuntimeError, aiohttp.ClientError, OSError) as error:
        log.debug("the log of %s broke off: %s", submission_id, one_line(error))


def job_details(server: JobServer, submission_id: str) -> "JobDetails":
    """What the job server says of a job, asked again while it is away; raises ClusterError."""
    for attempt in stamina.retry_context(on=ClusterError, attempts=None, timeout=PATIENCE_S):
        with attempt, server.asked():
            return server.client.get_job_info(submission_id)
    raise AssertionError("the last attempt returns or raises")


def job_log(server: JobServer, submission_id: str) -> str:
    """All of a log so far; empty for a job that never started. Raises ClusterError."""
    with server.asked():
        return server.client.get_job_logs(submission_id)


def exit_code(details: "JobDetails") -> int:
    """The driver's own; raises ClusterError for a job that had no driver to give one."""
    state = details.status.value
    if state == "SUCCEEDED":
        return 0
    if state == "STOPPED":
        return EXIT_STOPPED
    code: int | None = details.driver_exit_code
    if code is None:
        raise ClusterError(f"the job did not run to its end: {_why(details.message or '')}")
    return 128 - code if code < 0 else code


def _why(message: str) -> str:
    """The line of Ray's message that names the cause."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "error" in line]
    return one_line((named or lines or ["no reason was given"])[-1])
