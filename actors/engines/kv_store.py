"""Computed key-value states, kept so that no prefix is computed twice.

A segment holds the states of a run of tokens and names the segment before it, so paths that
share a prefix share its memory. Invariant: a chain is only returned whole; a chain that lost
a segment to eviction is a miss.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch

Key = bytes
NO_KEY: Key = b""


@dataclass(frozen=True, slots=True)
class Segment:
    """States of `length` tokens, [2, layers, length, kv heads, head size], and what came before."""

    before: Key
    states: torch.Tensor

    @property
    def length(self) -> int:
        return int(self.states.shape[2])


def path_key(*parts: bytes) -> Key:
    """A key for a path; parts are kept apart, so different splits give different keys."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class KVStore:
    """Segments by key, at most `capacity_bytes` of them, least recently used evicted first."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._held_bytes = 0
        self._segments: OrderedDict[Key, Segment] = OrderedDict()

    def put(self, key: Key, segment: Segment) -> None:
        """Keeps a segment; evicts the oldest ones beyond the capacity.

        A segment that is there and whole stays; one that lost what came before it is replaced.
        """
        if key in self._segments:
            if self.chain(key) is not None:
                return
            self._held_bytes -= self._segments.pop(key).states.nbytes
        self._segments[key] = segment
        self._held_bytes += segment.states.nbytes
        while self._held_bytes > self._capacity_bytes and len(self._segments) > 1:
            _, evicted = self._segments.popitem(last=False)
            self._held_bytes -= evicted.states.nbytes

    def chain(self, key: Key) -> list[Segment] | None:
        """All segments of a path from its start, or None if any is missing."""
        segments: list[Segment] = []
        while key != NO_KEY:
            segment = self._segments.get(key)
            if segment is None:
                return None
            self._segments.move_to_end(key)
            segments.append(segment)
            key = segment.before
        return segments[::-1]
