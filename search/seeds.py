"""Every random draw of a run comes from a seed derived here, so place and order never matter."""

import hashlib

SEED_BITS = 63


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from any mix of names and numbers; equal parts give equal seeds."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = f"{type(part).__name__}:{part}".encode(errors="surrogatepass")
        # With its length before it, no part can run into the next.
        hashed.update(len(text).to_bytes(8, "big") + text)
    digest = hashed.digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def node_seed(run_seed: int, problem_id: str, strategy: str, node_id: str) -> int:
    """The seed with which the children of one node are sampled."""
    return derive_seed(run_seed, problem_id, strategy, node_id)
