"""The store of key-value states: whole chains or nothing, within its bytes, oldest first out."""

import pytest
import torch

from actors.engines.kv_store import NO_KEY, KVStore, Segment, path_key

TOKEN_BYTES = 2 * 1 * 1 * 4 * 4  # keys and values, layers, heads, head size, float32


def segment_of(before: bytes, tokens: int = 1, fill: float = 0.0) -> Segment:
    return Segment(before, torch.full((2, 1, tokens, 1, 4), fill))


def store_of(tokens: int, *keys: bytes) -> KVStore:
    """A store with room for so many tokens, holding paths of one token under these keys."""
    store = KVStore(tokens * TOKEN_BYTES)
    for key in keys:
        store.put(key, segment_of(NO_KEY))
    return store


def held(store: KVStore, *keys: bytes) -> list[bytes]:
    return [key for key in keys if store.chain(key) is not None]


@pytest.mark.unit
def test_a_chain_is_returned_from_its_start() -> None:
    store = store_of(10)
    store.put(b"root", segment_of(NO_KEY, 3, 1.0))
    store.put(b"left", segment_of(b"root", 1, 2.0))
    store.put(b"right", segment_of(b"root", 2, 3.0))
    chain = store.chain(b"right")
    assert chain is not None
    assert [(s.length, float(s.states.mean())) for s in chain] == [(3, 1.0), (2, 3.0)]


@pytest.mark.unit
def test_the_empty_path_is_always_there() -> None:
    assert store_of(1).chain(NO_KEY) == []


@pytest.mark.unit
def test_an_unknown_key_is_a_miss() -> None:
    assert store_of(1, b"a").chain(b"b") is None


@pytest.mark.unit
def test_a_chain_that_lost_a_segment_is_a_miss_until_it_is_whole_again() -> None:
    store = store_of(2, b"root")
    store.put(b"child", segment_of(b"root"))
    store.put(b"grandchild", segment_of(b"child"))
    assert held(store, b"root", b"child", b"grandchild") == []
    store = store_of(2, b"root")
    store.put(b"orphan", segment_of(b"lost"))
    assert store.chain(b"orphan") is None
    store.put(b"lost", segment_of(NO_KEY))
    assert store.chain(b"orphan") is not None


@pytest.mark.unit
def test_as_much_is_evicted_as_the_bytes_ask_for() -> None:
    store = store_of(4, b"a", b"b", b"c", b"d")
    assert held(store, b"a", b"b", b"c", b"d") == [b"a", b"b", b"c", b"d"]
    store.put(b"e", segment_of(NO_KEY, tokens=3))
    assert held(store, b"a", b"b", b"c", b"d", b"e") == [b"d", b"e"]


@pytest.mark.unit
def test_what_was_used_last_stays_longest() -> None:
    store = store_of(3, b"a", b"b", b"c")
    store.chain(b"a")
    store.put(b"d", segment_of(NO_KEY))
    assert held(store, b"a", b"b", b"c", b"d") == [b"a", b"c", b"d"]


@pytest.mark.unit
def test_using_a_path_uses_everything_before_it() -> None:
    store = store_of(3, b"root")
    store.put(b"child", segment_of(b"root"))
    store.put(b"other", segment_of(NO_KEY))
    store.chain(b"child")
    store.put(b"new", segment_of(NO_KEY))
    assert held(store, b"root", b"child", b"other", b"new") == [b"root", b"child", b"new"]


@pytest.mark.unit
def test_the_newest_segment_stays_even_if_it_is_larger_than_the_store() -> None:
    store = store_of(2, b"a")
    store.put(b"b", segment_of(NO_KEY, tokens=5))
    assert held(store, b"a", b"b") == [b"b"]
    store.put(b"c", segment_of(NO_KEY))
    assert held(store, b"b", b"c") == [b"c"]


@pytest.mark.unit
def test_putting_a_key_again_counts_its_bytes_once() -> None:
    store = store_of(2, b"a", b"a", b"a", b"b")
    assert held(store, b"a", b"b") == [b"a", b"b"]


@pytest.mark.unit
def test_a_whole_segment_replaces_one_that_hangs_in_the_air() -> None:
    """A path computed anew must be found again, whatever was left of it."""
    store = store_of(4)
    store.put(b"path", segment_of(b"lost", 1))
    store.put(b"path", segment_of(NO_KEY, 2))
    chain = store.chain(b"path")
    assert chain is not None
    assert [segment.length for segment in chain] == [2]


@pytest.mark.unit
def test_the_parts_of_a_key_do_not_run_together() -> None:
    parts = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"", b"abc"), (), (b"",)]
    assert len({path_key(*each) for each in parts}) == len(parts)
    long_part = b"a" + (1).to_bytes(8, "little") + b"b"
    assert path_key(long_part) != path_key(b"a", b"b")


@pytest.mark.unit
def test_equal_parts_give_equal_keys_and_never_the_empty_one() -> None:
    assert path_key(b"a", b"b") == path_key(b"a", b"b")
    assert NO_KEY not in {path_key(), path_key(b"")}
