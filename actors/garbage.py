"""The garbage collector: not while modules are imported, and seldom after that.

What torch and transformers need makes a million objects that stay. The collector looks through
them again and again, which is a sixth of the time that they take to import. And what a batch is
made of lives until it is answered, so to look for garbage in it every 700 objects is in vain: a
tenth of the processor time of a call.
"""

import atexit
import contextlib
import gc
from collections.abc import Iterator

# New objects between two looks, and looks at the new ones between two at those that stayed.
OBJECTS, LOOKS = 10_000, 10

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


def collect_seldom() -> None:
    """For the rest of a process that has nothing to do but calls."""
    gc.freeze()
    gc.set_threshold(OBJECTS, LOOKS, LOOKS)
