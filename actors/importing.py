"""The garbage collector while modules are imported.

What torch and transformers need makes a million objects that stay. The collector looks through
them again and again, which is a sixth of the time that they take to import.
"""

import contextlib
import gc
from collections.abc import Iterator


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
