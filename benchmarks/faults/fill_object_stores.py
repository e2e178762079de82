"""Fills the object store of every node, as another job on the same cluster may.

`python -m benchmarks.faults.fill_object_stores ADDRESS SECONDS`
"""

import sys
import time

import numpy as np

SHARES, SHARE_BYTES = 12, 10_000_000


def main() -> None:
    import ray

    address, seconds = sys.argv[1], float(sys.argv[2])
    ray.init(address=address, log_to_driver=False)
    kept = ray.remote(num_cpus=0.01, scheduling_strategy="SPREAD")(_share)
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    held = [kept.remote(number) for number in range(SHARES * len(nodes))]
    ray.wait(held, num_returns=len(held), timeout=seconds)
    time.sleep(seconds)


def _share(number: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    return np.full(SHARE_BYTES, number % 256, np.uint8)


if __name__ == "__main__":
    main()
