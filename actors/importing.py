"""The garbage collector while modules are imported.

What torch and transformers need makes a million objects that stay. The collector looks through
them again and again, which is a sixth of the time that they take to import.
"""

import atexit
import contextlib
import gc
from collections.abc import Iterator

# At the end all is collected: some libraries count what is left then, and complain.
atexit.register(gc.unfreeze)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is collected in the block, and what it leaves is never looked through again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
