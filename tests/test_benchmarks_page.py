"""The page of figures: what benchmarks leave is what the table says, met or not."""

import json
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.results import result, write_results

pytestmark = pytest.mark.unit

PROSE = "# Performance\n\n"
AFTER = "\n## Details\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with results, beside a page of its own."""
    found = [
        result("speed", 0.9, [0.91, 0.95, 0.93], "start and end"),
        result("cost in ms", 0.2, [0.25, 0.21, 0.3], "calls", at_most=True),
    ]
    write_results(str(tmp_path / "results" / "some.json"), "python -m some", found)
    (tmp_path / "page.md").write_text(PROSE + page.BEGIN + "old\n" + page.END + AFTER)
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(page, "FIGURE", tmp_path / "figure.png")
    return tmp_path


def test_the_table_has_each_figure_with_its_goal_and_command(folder: Path) -> None:
    page.main([str(folder / "results")])
    text = (folder / "page.md").read_text()
    assert (
        "| speed | at least 0.9 | 0.93 | 0.91 to 0.95 | start and end | `python -m some` |" in text
    )
    assert "| cost in ms | at most 0.2 | **0.25** | 0.21 to 0.3 |" in text
    assert text.startswith(PROSE)
    assert text.endswith(AFTER)
    assert "old" not in text
    assert (folder / "figure.png").stat().st_size > 1000


def test_writing_the_page_twice_changes_nothing(folder: Path) -> None:
    page.main([str(folder / "results")])
    once = (folder / "page.md").read_text()
    page.main([str(folder / "results")])
    assert (folder / "page.md").read_text() == once


def test_results_say_what_they_were_measured_on(folder: Path) -> None:
    document = json.loads((folder / "results" / "some.json").read_text())
    assert "cores" in document["machine"]
    assert document["versions"]["ray"]
    assert [each["figure"] for each in document["results"]] == [0.93, 0.25]


def test_no_results_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no results: run make bench"):
        page.main([str(tmp_path)])
