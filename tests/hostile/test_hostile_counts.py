"""The corpus is as large as docs/reliability.md says, and no case is there twice."""

import json
import re
from pathlib import Path

import pytest
from hostile_cases import BORDERS, HERE, load

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"


def test_the_page_counts_the_cases() -> None:
    rows = re.findall(r"^\| `(\w+)\.yaml` \|.*\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    counted = {border: len(load(border)) for border in BORDERS}
    assert {name: int(count) for name, count in rows} == counted
    assert sorted(path.stem for path in HERE.glob("*.yaml")) == sorted(BORDERS)
    assert sum(counted.values()) >= 300


def test_no_case_is_there_twice() -> None:
    for border in BORDERS:
        cases = load(border)
        contents = [json.dumps(case.values, sort_keys=True, default=str) for case in cases]
        assert len({case.name for case in cases}) == len(set(contents)) == len(cases)
