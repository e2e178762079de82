"""Units that failed and wait for another attempt.

A model that answers badly for a while, or a replica that hung, is another one a little later.
Invariant: a unit fails at most `attempts` times, and what waits holds no place of what runs.
"""

import asyncio
import logging
from collections import Counter

from cluster.backlog import Backlog
from cluster.logs import about_units
from cluster.unit_tables import UnitTables
from search.partition import WorkUnit

# After 2, 20 and then 60 seconds: what is wrong for a minute is over by then.
FIRST_WAIT_S = 2.0
GROWTH = 10.0
LONGEST_WAIT_S = 60.0

log = logging.getLogger("branchwise")


class Attempts:
    """Counts the failures of units, and puts those that have attempts left into the backlog.

    waiting: units that will be run again; again: how often one was or will be.
    """

    def __init__(self, attempts: int, backlog: Backlog) -> None:
        self._attempts, self._backlog = attempts, backlog
        self._failures, self._starts = Counter[str](), Counter[str]()
        self.waiting = self.again = 0

    def before(self, unit: WorkUnit) -> int:
        """How often a unit was started for attempts that failed; it is forgotten with this."""
        self._failures.pop(unit.unit_id, 0)
        return self._starts.pop(unit.unit_id, 0)

    def tries_again(self, failed: UnitTables) -> bool:
        """Whether a unit that failed will be run again; it is put into the backlog when due."""
        unit, reason = failed.unit, failed.reason
        failures = self._failures[unit.unit_id] + 1
        if failures >= self._attempts:
            log.warning("a work unit failed: %s", reason, extra=about_units(unit))
            return False
        self._failures[unit.unit_id] = failures
        self._starts[unit.unit_id] += failed.attempts
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * GROWTH ** (failures - 1))
        line = "a work unit failed and is run again in %g s: %s"
        log.warning(line, wait_s, reason, extra=about_units(unit))
        self.waiting += 1
        self.again += 1
        asyncio.get_running_loop().call_later(wait_s, self._give_back, unit)
        return True

    def _give_back(self, unit: WorkUnit) -> None:
        self.waiting -= 1
        self._backlog.add([unit])
