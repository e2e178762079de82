"""Token ids travel and rest as bytes: int32, little endian, four bytes a token."""

import sys
from array import array
from collections.abc import Sequence

BYTES_PER_TOKEN = 4


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as bytes."""
    return _little_endian(array("i", list(ids))).tobytes()


def unpack_ids(packed: bytes) -> list[int]:
    """Bytes made by `pack_ids` as a list of token ids."""
    ids = array("i")
    ids.frombytes(packed)
    return _little_endian(ids).tolist()


def count_ids(packed: bytes) -> int:
    """How many tokens the bytes hold."""
    return len(packed) // BYTES_PER_TOKEN


def _little_endian(ids: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        ids.byteswap()
    return ids
