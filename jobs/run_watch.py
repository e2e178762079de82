"""What a run tells while it goes on: log lines, metrics, and `progress.json`.

Invariant: the run waits for none of it. Two threads look at the counts that the driver keeps: one
sets metrics and writes a line every so often, whether anything has finished or not; one asks Serve
for its replicas and writes the file, and may hang as long as a store does.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Self

from rich.console import Console

from cluster.fanout import Site
from cluster.flight import Flight
from cluster.logs import about
from cluster.metrics import PRM, DeploymentMetrics
from cluster.readiness import Replicas, replicas_ready
from jobs.progress import ProgressDisplay, Speed
from jobs.progress_file import NAME, RunProgress, Searching
from jobs.storage import Storage
from search.errors import StorageError

SECONDS_BETWEEN_LINES = 30.0
METRICS_INTERVAL_S = 2.0
FILE_INTERVAL_S, STORE_INTERVAL_S = 5.0, 30.0
_LONGEST_END_S = 5.0
log = logging.getLogger("branchwise")


class Every(threading.Thread):
    """Acts every so many seconds until it is stopped; nobody waits long for an act to end."""

    def __init__(self, name: str, interval_s: float, act: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._interval_s, self._act, self._ended = interval_s, act, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._act()

    def stop(self) -> None:
        """No act begins after this."""
        self._ended.set()
        if self.is_alive():
            self.join(_LONGEST_END_S)


class Search:
    """One policy's searches while they go on: their display, and what is under way."""

    def __init__(self, run: str, site: Site, display: ProgressDisplay) -> None:
        self.display, self.flight = display, Flight()
        # The application of each deployment, and its metrics.
        self._deployments = {site.policy: DeploymentMetrics(run, site.policy_name)}
        if site.prm:
            self._deployments[site.prm] = DeploymentMetrics(run, PRM)
        now_s = time.monotonic()
        self._policy_speed, self._prm_speed = Speed(now_s), Speed(now_s)

    def seen(self) -> Searching:
        """How far it is."""
        display, now_s = self.display, time.monotonic()
        tally = replace(display.tally)
        return Searching(
            problems=display.problems,
            units=display.units,
            tally=tally,
            in_flight=self.flight.now(),
            policy_tokens_s=self._policy_speed.add(now_s, tally.generated_tokens),
            prm_tokens_s=self._prm_speed.add(now_s, tally.prm_computed_tokens),
            silent_s=now_s - display.last_news_s,
            left_s=display.left_s,
        )

    def tell(self, seen: Searching, commits: int, replicas: Replicas) -> None:
        """Sets the metrics."""
        whole = {"problems": seen.problems, "units": seen.units, "commits": commits}
        counts = whole | asdict(seen.tally) | asdict(seen.in_flight)
        for application, metrics in self._deployments.items():
            ready, wanted = replicas.get(application, (0, 0))
            metrics.tell(counts | {"replicas_ready": ready, "replicas_wanted": wanted})


class RunWatch:
    """A context for the length of a run, in this process. commits: how many count by now."""

    def __init__(
        self, run_id: str, folder: Storage, console: Console, commits: Callable[[], int]
    ) -> None:
        self.run_id, self._folder, self._console = run_id, folder, console
        self._commits, self._commits_before = commits, commits()
        self._policies: tuple[str, ...] = ()
        self._place, self._doing = 0, "starting"
        self._started_s = self._since_s = self._last_line_s = time.monotonic()
        self._search: Search | None = None
        self._one_at_a_time = threading.Lock()
        self._seen: Searching | None = None
        self._replicas: Replicas = {}
        self._every_s = FILE_INTERVAL_S if folder.here else STORE_INTERVAL_S
        self._threads = (
            Every("watch", METRICS_INTERVAL_S, self._look),
            Every("progress file", self._every_s, self._write),
        )

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        for thread in self._threads:
            thread.stop()
        if kind is None:
            with contextlib.suppress(StorageError):  # who reads it sees that the run has ended
                self._folder.at_once.delete(NAME)

    def begins(self, doing: str) -> None:
        """Says what goes on from now on, for as long as it does."""
        self._doing, self._since_s = doing, time.monotonic()
        log.info("%s", doing)

    def deploying(self, policies: Sequence[str], place: int) -> None:
        """The policy of the ladder at a place, from 0, is started."""
        self._policies, self._place = tuple(policies), place + 1
        self.begins(f"deploying {policies[place]}")

    @contextlib.contextmanager
    def searching(self, site: Site, problems: int, units: int) -> Iterator[Search]:
        """One policy's searches over so many problems, which begin with so many units."""
        display = ProgressDisplay(site.policy_name, problems, units, self._console)
        self._doing, self._since_s = "searching", time.monotonic()
        with about(policy=site.policy_name), display:
            self._search = search = Search(self.run_id, site, display)
            try:
                yield search
                log.info("done: %s", display.facts())
            finally:
                self._look_at(search)
                self._search = self._seen = None

    def _look(self) -> None:
        search = self._search
        if search is not None:
            self._look_at(search)
        due = time.monotonic() - self._last_line_s >= SECONDS_BETWEEN_LINES
        if due and not self._console.is_terminal:
            self._last_line_s = time.monotonic()
            named = {"run": self.run_id, "policy": search.display.policy if search else ""}
            log.info("%s", self._line(search), extra=named)

    def _look_at(self, search: Search) -> None:
        with self._one_at_a_time:
            self._seen = search.seen()
            search.tell(self._seen, self._commits() - self._commits_before, self._replicas)

    def _line(self, search: Search | None) -> str:
        """What goes on, and if nothing finishes, what is waited for."""
        seen = self._seen
        if search is None or seen is None:
            return f"{self._doing} for {time.monotonic() - self._since_s:.0f} s{self._ready()}"
        flight = seen.in_flight
        line = f"{search.display.facts()}, {flight.units_in_flight} units in flight"
        if flight.units_waiting:
            line += f", {flight.units_waiting} to be run again"
        if seen.silent_s >= SECONDS_BETWEEN_LINES:
            return f"{line}, nothing finished for {seen.silent_s:.0f} s{self._ready()}"
        return line if seen.left_s is None else f"{line}, {seen.left_s:.0f} s left"

    def _ready(self) -> str:
        ready = [f"{name} {ready}/{wanted}" for name, (ready, wanted) in self._replicas.items()]
        return f", replicas ready: {', '.join(ready)}" if ready else ""

    def _write(self) -> None:
        self._replicas = replicas_ready()
        with contextlib.suppress(StorageError):
            self._folder.at_once.write(NAME, self._progress().as_json())

    def _progress(self) -> RunProgress:
        return RunProgress(
            run_id=self.run_id,
            doing=self._doing,
            policies=self._policies,
            place=self._place,
            seconds=time.monotonic() - self._started_s,
            every_s=self._every_s,
            written_at=datetime.now(UTC).isoformat(timespec="seconds"),
            searching=self._seen,
            replicas=dict(self._replicas),
        )
