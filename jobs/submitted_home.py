"""Where a submitted job keeps its results, if its recipe names no place that lasts.

Ray runs a submitted job in a temporary copy of its working directory and deletes that later.
Invariant: a relative path never means that copy; it is taken from a home that stays.
"""

import logging
import os
import socket
from functools import lru_cache
from pathlib import Path

from cluster.connect import SUBMITTED_JOB
from jobs.store_uris import is_uri

HOME = "BRANCHWISE_HOME"
DEFAULT_HOME = "~/branchwise"
log = logging.getLogger("branchwise")


def lasting(where: str) -> str:
    """A path or URI of run folders, as it is meant by the process that drives a run."""
    if SUBMITTED_JOB not in os.environ or is_uri(where) or where.startswith(("/", "~")):
        return where
    place = str(Path(os.environ.get(HOME) or DEFAULT_HOME).expanduser() / where)
    _say(place)
    return place


@lru_cache
def _say(place: str) -> None:
    log.info(
        "results go to %s on %s, the machine of the driver: a URI in runs_folder puts them "
        "elsewhere",
        place,
        socket.gethostname(),
    )
