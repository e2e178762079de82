"""What the fake engines write down, and what of it counts as done again."""

import asyncio
import json
from pathlib import Path

import pytest

from actors.engines.fake import FakePolicy, FakePRM
from actors.spec import ModelSpec
from actors.wire import ExpandItem, ScoreItem
from benchmarks.faults.ledgers import read_ledger, redone
from search.protocols import PolicyPath, PRMPath, Sampling

pytestmark = pytest.mark.unit


def spec(folder: Path, **options: str) -> ModelSpec:
    return ModelSpec("fake", "fake", "fake", "float64", options={"ledger": str(folder), **options})


def expand(folder: Path, seeds: list[int]) -> None:
    """Asks an engine of its own, as a replica is."""
    policy = FakePolicy(spec(folder))
    for seed in seeds:
        asyncio.run(policy.expand(ExpandItem(PolicyPath("1 + 1", b""), 2, Sampling(), 60, seed)))


def test_a_request_has_the_same_name_whoever_asks(tmp_path: Path) -> None:
    expand(tmp_path, [1, 2])
    expand(tmp_path, [2, 3])
    found = read_ledger(tmp_path, "policy")
    assert sorted(map(len, found.asked.values())) == [1, 1, 2]
    assert found.answers == 4
    assert all(tokens > 0 for tokens in found.tokens.values())


def test_only_what_is_asked_more_often_is_redone(tmp_path: Path) -> None:
    expand(tmp_path / "plain", [1, 2, 2])
    expand(tmp_path / "struck", [1, 1, 2, 2, 3])
    plain, struck = (read_ledger(tmp_path / name, "policy") for name in ("plain", "struck"))
    again = redone(struck, plain, fault_at_s=0.0)
    # Seed 3 is new: no run without the fault asked for it, so it costs requests but no share.
    assert again.requests == 2
    repeated = next(key for key, times in plain.asked.items() if len(times) == 1)
    assert again.tokens_share == plain.tokens[repeated] / plain.total_tokens
    assert redone(plain, plain, 0.0).requests == 0
    assert redone(plain, plain, 0.0).after_s == ()


def test_what_a_killed_engine_left_is_read(tmp_path: Path) -> None:
    expand(tmp_path, [1])
    [file] = tmp_path.iterdir()
    with file.open("a") as lines:
        lines.write(json.dumps({"at_s": 1.0, "asked": "x"}) + '\n{"at_s": 2.0, "ans')
    found = read_ledger(tmp_path, "policy")
    assert found.asked["x"] == [1.0]
    assert found.answers == 1


def test_a_prm_returns_no_numbers_while_a_file_is_there(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    prm = FakePRM(spec(tmp_path / "ledger", nan_while=str(garbage)))
    item = ScoreItem(PRMPath("1 + 1", ("2",)))

    def reward() -> float:
        return asyncio.run(prm.score(item)).reward

    before = reward()
    garbage.touch()
    assert reward() != reward()
    garbage.unlink()
    assert reward() == before
    assert read_ledger(tmp_path / "ledger", "prm").answers == 4
