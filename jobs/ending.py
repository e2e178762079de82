"""An orderly end on SIGTERM: what Ray's job server, Kubernetes and Slurm send before SIGKILL.

Invariant: SIGTERM does what Ctrl-C does, so there is one way in which a run is interrupted: what
was finished is committed, replicas leave, the claim on the run's folder is given up.
"""

import os
import signal
import sys

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_STOPPED = 128 + signal.SIGTERM


class Ending:
    """Which signal ends this process, if one does."""

    def __init__(self) -> None:
        self._is_stopped = False

    def listen(self) -> None:
        """Ends on SIGTERM from now on; to be called in the main thread."""
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        # A second one changes nothing: the end is under way, and SIGKILL is what hurries it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._is_stopped = True
        signal.raise_signal(signal.SIGINT)

    def leave(self, left: BaseException) -> None:
        """Ends the process by the code of the signal, if one came; typer turns some into exits."""
        if self._is_stopped:
            print("stopped by SIGTERM", file=sys.stderr, flush=True)
            sys.stdout.flush()
            # All is in order; what an interpreter with Ray in it does at its end takes seconds.
            os._exit(EXIT_STOPPED)
        if isinstance(left, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
