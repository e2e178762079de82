"""Reports of synthetic runs: what they say, that they are honest, and that they repeat."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from whole_samples import samples_of_parts

from jobs.curves import answers_table
from jobs.report import write_report
from jobs.reported_run import read_run
from jobs.results import load_table
from jobs.storage import storage_at
from jobs.summary import samples_table
from search.errors import StorageError
from search.rewards import Reduction
from search.schemas import NODES, PROBLEMS, SOLUTIONS, STOPS, UNITS
from search.strategies import keep_count
from search.votes import Vote

pytestmark = pytest.mark.unit

Row = dict[str, Any]
PARAMETERS = {"tiny": 100_000, "middle": 500_000, "large": 3_400_000}
PRM_PARAMETERS = 400_000
SEARCHES = [
    ("majority", 16, 1),
    ("best_of_n", 16, 1),
    ("dvts", 16, 4),
    ("beam", 4, 4),
    ("beam", 16, 4),
]


def write_run(
    folder: Path,
    skill: dict[str, float],
    searches: list[tuple[str, int, int]] = SEARCHES,
    problems: int = 20,
    task_scores: bool = True,
) -> Path:
    """A run folder whose policies answer with the given probability."""
    rng = np.random.default_rng(5)
    rows, units = [], []
    for policy in skill:
        for strategy, n, branching in searches:
            for problem in range(problems):
                shared = _search(problem, policy, strategy, n, branching)
                hardness = rng.normal(0, 0.15)
                rows += list(_solutions(shared, skill[policy] + hardness, task_scores, rng))
                units.append(_unit(shared, rng))
    folder.mkdir()
    units.append(units[0] | {"unit_id": "bad|unit", "status": "error", "error": "PRMError: NaN"})
    solutions = pa.Table.from_pylist(rows, SOLUTIONS)
    pq.write_table(solutions, folder / "solutions.parquet")
    pq.write_table(pa.Table.from_pylist(units, UNITS), folder / "units.parquet")
    pq.write_table(STOPS.empty_table(), folder / "stops.parquet")
    pq.write_table(_problems(problems), folder / "problems.parquet")
    pq.write_table(NODES.empty_table(), folder / "nodes.parquet")
    pq.write_table(answers_table(solutions, None, 1), folder / "answers.parquet")
    pq.write_table(samples_of_parts([solutions], None, 1.0), folder / "samples.parquet")
    (folder / "run.json").write_text(json.dumps(_record(folder.name, list(skill))))
    return folder


def _search(problem: int, policy: str, rule: str, n: int, branching: int) -> Row:
    strategy, _, variant = rule.partition(" ")
    return {
        "problem_id": f"p{problem:03}",
        "policy": policy,
        "strategy": strategy,
        "n": n,
        "branching": branching,
        "keep": keep_count(strategy, n, branching),
        "variant": variant,
        "unit_id": f"p{problem:03}/{rule}-{n}",
    }


def _solutions(
    shared: Row, skill: float, task_scores: bool, rng: np.random.Generator
) -> Iterator[Row]:
    for place in range(shared["n"]):
        right = rng.random() < skill
        answer_class = 0 if right else int(rng.integers(1, 6))
        rewards = np.clip(rng.normal(0.3 + 0.3 * right, 0.2, size=3), 0.0, 1.0).tolist()
        yield shared | {
            "subtree": 0 if shared["strategy"] == "beam" else place // shared["branching"],
            "solution_id": f"{place}:0",
            "answer": str(answer_class),
            "answer_class": answer_class,
            "verdict": "correct" if right else "incorrect",
            "task_score": float(right) if task_scores else None,
            "rewards": [] if shared["strategy"] == "majority" else rewards,
            "policy_tokens": 40,
            "stop_reason": "max_tokens" if place == 0 else "eos",
        }


def _unit(shared: Row, rng: np.random.Generator) -> Row:
    written, prefix, scored = (int(tokens) for tokens in rng.integers(500, 1500, size=3))
    scored = 0 if shared["strategy"] == "majority" else scored
    ahead = int(rng.integers(500, 1500)) if "lookahead" in shared["variant"] else 0
    computed = written + prefix + ahead
    flops = 2.0 * (PARAMETERS[shared["policy"]] * computed + PRM_PARAMETERS * scored)
    return shared | {
        "status": "done",
        "seconds": 1.5,
        "solutions": shared["n"],
        "generated_policy_tokens": written,
        "prefix_policy_tokens": 3 * prefix,
        "computed_prefix_policy_tokens": prefix,
        "lookahead_policy_tokens": ahead,
        "computed_prm_tokens": scored,
        "minimal_prm_tokens": scored,
        "flops": flops,
    }


def _problems(count: int) -> pa.Table:
    rows: list[Row] = [{"problem_id": f"p{place:03}", "error": None} for place in range(count)]
    return pa.Table.from_pylist([*rows, {"problem_id": "x", "error": "no | text"}], PROBLEMS)


def _record(run_id: str, policies: list[str]) -> Row:
    return {
        "run_id": run_id,
        "recipe": {"policies": [{"name": name} for name in policies]},
        "recipe_digest": "d1935t",
        "versions": {"ray": "2.60.0"},
        "git_revision": "abc",
        "started_at": "2025-01-01T00:00:00+00:00",
        "finished_at": "",
        "seeds": {"run": 1},
    }


LADDER = {"tiny": 0.35, "middle": 0.5, "large": 0.6}


def test_a_report_says_what_was_run_and_what_came_out(tmp_path: Path) -> None:
    files = write_report([write_run(tmp_path / "demo", LADDER)], tmp_path / "report")
    text = files.markdown.read_text()
    assert files.png.stat().st_size > 10_000
    assert files.selection_png.stat().st_size > 10_000
    assert "![Accuracy against N" in text
    assert "tiny (100 k parameters), middle (500 k parameters), large (3.4 M parameters)" in text
    assert "| tiny | beam | 16 | 4 | 4 | 20 |" in text
    assert "| tiny | dvts | 16 | 4 | 1 | 20 |" in text
    assert "1 of 301 work units failed" in text
    assert "| 1 | bad\\|unit | PRMError: NaN |" in text
    assert "| x | no \\| text |" in text
    assert "they agree on 100.0 %" in text
    assert "None" not in text
    assert "nan" not in text


def test_a_report_says_what_accuracy_costs_and_by_difficulty(tmp_path: Path) -> None:
    files = write_report([write_run(tmp_path / "demo", LADDER)], tmp_path / "report")
    text = files.markdown.read_text()
    assert all(path.stat().st_size > 10_000 for path in files.written)
    assert {path.name for path in files.written if path.suffix == ".png"} == {
        "accuracy.png",
        "selection.png",
        "budgets.png",
        "difficulty.png",
    }
    costs = text[text.index("### Accuracy against cost") :]
    assert "| tiny | one sample | 1 | 1 |" in costs
    assert "| tokens from | policy |" in costs
    assert "| FLOPs from | policy |" in costs
    bins = text[text.index("### Accuracy by difficulty") :]
    assert "(tiny: 16, middle: 16, large: 16 a problem)" in " ".join(bins.split())
    assert "| tiny | best_of_n | 1 | 8 |" in bins
    assert "| tiny | dvts | 4 | 16 |" in bins
    pairs = text[text.index("larger policy | keeps up") :]
    assert "| tiny | dvts | 4 | large |" in pairs
    assert "| 1 : 34 |" in pairs
    assert "| 1 : 6.8 |" in pairs


def test_a_report_without_flops_or_samples_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", LADDER, [("dvts", 16, 4)])
    rows = [row | {"flops": 0.0} for row in load_table(run, "units").to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, UNITS), run / "units.parquet")
    files = write_report([run], tmp_path)
    text = files.markdown.read_text()
    assert "FLOPs are left out: the engines of this run count none" in text
    assert "FLOPs from" not in text
    assert "No bins for tiny, middle, large" in text
    assert files.difficulty_png is None
    assert "difficulty.png" not in text
    assert "| unknown | x " in text


def test_variants_have_lines_of_their_own(tmp_path: Path) -> None:
    searches = [("dvts", 16, 4), ("dvts lookahead=1", 16, 4), ("rebase", 16, 1)]
    run = write_run(tmp_path / "demo", LADDER, searches)
    files = write_report([run], tmp_path / "report")
    text = files.markdown.read_text()
    for rule in ("dvts", "dvts lookahead=1"):
        assert f"| tiny | {rule} | 16 | 4 | 1 | 20 |" in text
        assert f"| tiny | {rule} | 4 |" in text
        assert f"tiny {rule} " in text
    assert "| tiny | rebase | 16 | 1 | 16 | 20 |" in text
    assert "<!-- dvts lookahead=1 -->" in files.svg.read_text()
    # Sizes are read off costs, to which what was read ahead belongs.
    assert "tiny (100 k parameters), middle (500 k parameters), large (3.4 M parameters)" in text


def test_tables_are_well_formed(tmp_path: Path) -> None:
    files = write_report([write_run(tmp_path / "demo", LADDER)], tmp_path)
    width = 0
    for line in files.markdown.read_text().splitlines():
        cells = line.replace("\\|", "").count("|")
        assert not (cells and width) or cells == width, line
        width = cells


def test_the_comparison_is_honest_when_search_wins(tmp_path: Path) -> None:
    skill = {"tiny": 0.6, "large": 0.4}
    files = write_report([write_run(tmp_path / "demo", skill)], tmp_path)
    text = files.markdown.read_text()
    assert "with search is **above** the largest policy's one sample" in text
    assert "is the best of 4 strategies" in text


def test_the_comparison_is_honest_when_search_loses(tmp_path: Path) -> None:
    skill = {"tiny": -0.5, "large": 0.9}
    text = write_report([write_run(tmp_path / "demo", skill)], tmp_path).markdown.read_text()
    assert "with search is **below** the largest policy's one sample" in text


def test_the_comparison_is_honest_when_nothing_can_be_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", {"tiny": 0.5, "large": 0.5}, [("majority", 1, 1)], 6)
    text = write_report([run], tmp_path).markdown.read_text()
    assert "is **not distinguishable from** the largest policy's one sample" in text


def test_size_not_order_says_which_policy_is_the_largest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", {"large": 0.9, "tiny": 0.1})
    assert "large with one sample answers" in write_report([run], tmp_path).markdown.read_text()


def test_one_policy_one_problem_and_no_single_sample(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", {"tiny": 0.9}, [("beam", 4, 4)], 1, task_scores=False)
    text = write_report([run], tmp_path).markdown.read_text()
    assert "Only one policy has results" in text
    assert "any of 4" in text
    assert "| policies, by size | tiny |" in text
    assert "No solution was also graded" in text


def test_the_vote_that_is_shown_can_be_chosen(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", LADDER)
    default = write_report([run], tmp_path / "a").markdown.read_text()
    other = write_report([run], tmp_path / "b", Reduction.MIN, Vote.MAX).markdown.read_text()
    assert "reduction `last` and vote\nby `weighted`" in default
    assert "reduction `min` and vote\nby `max`" in other


def test_equal_tables_give_equal_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", LADDER)
    one, other = (write_report([run], tmp_path / name) for name in ("a", "b"))
    assert one.svg.read_bytes() == other.svg.read_bytes()
    assert one.png.read_bytes() == other.png.read_bytes()
    assert one.selection_svg.read_bytes() == other.selection_svg.read_bytes()
    assert one.selection_png.read_bytes() == other.selection_png.read_bytes()
    assert one.markdown.read_bytes() == other.markdown.read_bytes()
    for ours, theirs in zip(one.written, other.written, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_several_runs_share_a_figure(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "first", LADDER),
        write_run(tmp_path / "second", {"tiny": 0.5, "large": 0.7}, [("dvts", 8, 2)]),
    ]
    text = write_report(runs, tmp_path / "both").markdown.read_text()
    assert text.count("![Accuracy") == 1
    assert text.index("## Run first") < text.index("## Run second")


def test_a_run_without_any_solution_still_has_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", LADDER)
    empty = SOLUTIONS.empty_table()
    pq.write_table(empty, run / "solutions.parquet")
    pq.write_table(answers_table(empty, None, 1), run / "answers.parquet")
    assert "Only one policy has results" in write_report([run], tmp_path).markdown.read_text()


def test_a_folder_that_is_no_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a run folder"):
        write_report([tmp_path], tmp_path)


def test_independent_samples_have_a_chapter_first_if_they_are_the_protocol(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"tiny": 0.35}, [("majority", 16, 1)])
    text = write_report([folder], tmp_path).markdown.read_text()
    [mean] = [row for row in load_table(folder, "samples").to_pylist() if not row["problem_id"]]
    chapter = text[text.index("### Independent samples") :]
    line = next(row for row in chapter.splitlines() if row.startswith("| tiny | majority | 16 | "))
    assert f"| {100 * mean['pass_at_1']:.1f} (" in chapter
    assert f"| {100 * mean['cons_at_k']:.1f} |" in chapter
    assert "| 6.2 | 40 |" in chapter  # one sample of 16 was cut off
    assert "pass@2 | pass@4 | pass@8 | pass@16 |" in chapter
    assert text.index("### Independent samples") > text.index("### Accuracy at each N")
    record = json.loads((folder / "run.json").read_text())
    record["recipe"]["protocol"] = "sampling"
    (folder / "run.json").write_text(json.dumps(record))
    text = write_report([folder], tmp_path).markdown.read_text()
    assert text.count("### Independent samples") == 1
    assert text.index("### Independent samples") < text.index("### Accuracy at each N")
    assert line in text


def test_samples_that_were_given_out_unevenly_have_no_pass_at_k(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"tiny": 0.35}, [("majority", 16, 1)])
    even = load_table(folder, "samples")
    mean = even.to_pylist()[-1] | {"variant": "stop=posterior", "ks": [], "pass_at_k": []}
    stopped = pa.Table.from_pylist([mean], even.schema)
    pq.write_table(pa.concat_tables([even, stopped]), folder / "samples.parquet")
    text = write_report([folder], tmp_path).markdown.read_text()
    [line] = [row for row in text.splitlines() if "| majority stop=posterior | 16 |" in row]
    assert f"| {100 * mean['cons_at_k']:.1f} |  |  |  |  | 6.2 | 40 |" in line
    shown = samples_table(read_run(storage_at(folder)))
    assert [cell != "" for cell in shown.columns[5].cells] == [True, False]


def test_without_independent_samples_there_is_no_chapter_of_them(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"tiny": 0.35}, [("dvts", 16, 4)])
    assert "Independent samples" not in write_report([folder], tmp_path).markdown.read_text()
