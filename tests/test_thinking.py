"""Policies that think first: where thinking ends, what is an answer, and what the PRM reads."""

import asyncio
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recipe import fake_recipe
from test_whole_solutions import Whole

from jobs.recipe import parse_recipe
from search.config import Limits, SearchConfig
from search.errors import RecipeError
from search.growth import Growth
from search.partition import partition, run_unit
from search.problem import Problem
from search.protocols import StopReason
from search.rewards import Reduction
from search.rows import node_table, solution_table
from search.scripted import Script, ScriptedPolicy, ScriptedPRM
from search.strategies import STRATEGIES, keep_count
from search.thinking import Scored, Thinking
from search.tree import ROOT

pytestmark = pytest.mark.unit

PROBLEM = Problem("p1", "2+2", "4")
R1 = Thinking()
ALL = Thinking(score=Scored.ALL)
PIECES = ("<think>", "</think>", "<", "/", "think>", "a</think>b<think>c", "a")


def config_of(strategy: str, n: int, branching: int = 1, **changes: Any) -> SearchConfig:
    keep = keep_count(strategy, n, branching)
    settings: dict[str, Any] = {"limits": Limits(), "thinking": R1} | changes
    return SearchConfig(strategy, n, branching, keep, Reduction.LAST, 0, **settings)


def grow(config: SearchConfig, script: Script, rewards: dict[str, float]) -> Growth:
    [unit] = partition(PROBLEM, config, config.n)
    prm = ScriptedPRM(rewards=rewards)
    growth = asyncio.run(run_unit(unit, ScriptedPolicy(script=script), prm))
    return growth


def rows(config: SearchConfig, growth: Growth) -> list[dict[str, Any]]:
    [unit] = partition(PROBLEM, config, config.n)
    found: list[dict[str, Any]] = solution_table(unit, "policy", growth).to_pylist()
    return found


def chain(*steps: str) -> Script:
    """A script that writes these steps one after another."""
    return {steps[:place]: [step] for place, step in enumerate(steps)}


# ---- the marks


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("so 4</think>It is 4.", "It is 4."),  # the start mark stands in the prompt
        ("<think>so 4</think>It is 4.", "It is 4."),
        ("so 4, it is \\boxed{4}", ""),  # cut off
        ("<think>", ""),
        ("", ""),
        ("</think>", ""),
        ("</think>4", "4"),  # an empty thinking part
        ("a</think>b<think>c</think>d", "bd"),  # thinks again
        ("a</think>b<think>c", "b"),  # is cut off when it thinks again
        ("a</think>b</think>c", "b</think>c"),  # nothing is open that this could end
        ("<think>a<think>b</think>c", "c"),  # a second start mark opens nothing
        ("a</think >b", ""),
    ],
)
def test_what_is_spoken(text: str, spoken: str) -> None:
    assert R1.spoken(text) == spoken
    assert R1.is_cut(text) is ("</think>" not in text)


def test_marks_are_what_the_recipe_says() -> None:
    other = Thinking(end="[/T]", start="[T]")
    assert other.spoken("</think>[/T]b[T]c[/T]d") == "bd"


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_steps_speak_what_their_text_speaks_however_it_is_cut(steps: list[str]) -> None:
    parts = R1.spoken_steps(steps)
    assert "".join(parts) == R1.spoken("".join(steps))
    assert all(part in step for part, step in zip(parts, steps, strict=True))


# ---- answers and ends


def test_a_box_in_the_thinking_is_no_answer_and_ends_nothing() -> None:
    config = config_of("majority", 1)
    script = chain("Is it \\boxed{5}?", "No.</think>", "It is \\boxed{4}.", "never")
    growth = grow(config, script, {})
    [row] = rows(config, growth)
    assert (row["answer"], row["stop_reason"]) == ("4", "boxed")
    assert row["text"] == "Is it \\boxed{5}?\n\nNo.</think>\n\nIt is \\boxed{4}.\n\n"
    assert len(growth.tree) == 3


def test_a_box_behind_the_mark_in_the_same_step_ends_the_solution() -> None:
    config = config_of("majority", 1)
    growth = grow(config, chain("\\boxed{5}</think>\\boxed{4}", "never"), {})
    assert [row["answer"] for row in rows(config, growth)] == ["4"]


def test_a_box_before_the_mark_in_the_same_step_ends_nothing() -> None:
    config = config_of("majority", 1)
    growth = grow(config, chain("\\boxed{5}</think>So", "none<eos>"), {})
    [row] = rows(config, growth)
    assert (row["answer"], row["stop_reason"], len(growth.tree)) == ("", "eos", 2)


def test_a_mark_that_a_token_limit_cuts_in_two_still_ends_the_thinking() -> None:
    limits = Limits(max_step_tokens=10)  # a token is a byte
    config = config_of("majority", 1, limits=limits)
    script = {(): ["5?</think>"], ("5?</think><cut>",): ["\\boxed{4}"]}
    growth = grow(config, script, {})
    assert [str(text) for text in growth.tree.texts] == ["5?</think>", "\\boxed{4}\n"]
    limits = Limits(max_step_tokens=9)
    config = config_of("majority", 1, limits=limits)
    script = {
        (): ["5?</think>"],
        ("5?</think<cut>",): [">"],
        ("5?</think<cut>", ">"): ["\\boxed{4}"],
    }
    growth = grow(config, script, {})
    assert [str(text) for text in growth.tree.texts] == ["5?</think", ">\n\n", "\\boxed{4}"]
    assert [row["answer"] for row in rows(config, growth)] == ["4"]


@pytest.mark.parametrize(
    ("steps", "limits", "reason"),
    [
        (("It is \\boxed{4}",), Limits(max_steps=1), StopReason.THINKING),
        (("It is \\boxed{4}",), Limits(max_solution_tokens=17), StopReason.THINKING),
        (("Hm</think>It is 4",), Limits(max_steps=1), StopReason.MAX_STEPS),
        (("Hm</think>It is 4",), Limits(max_solution_tokens=19), StopReason.MAX_TOKENS),
        (("Hm", "</think>", "4"), Limits(max_steps=2), StopReason.MAX_STEPS),
        (("It is \\boxed{4}<eos>",), Limits(max_steps=1), StopReason.EOS),
    ],
)
def test_a_thinking_part_that_is_cut_off_has_no_answer_and_says_so(
    steps: tuple[str, ...], limits: Limits, reason: StopReason
) -> None:
    config = config_of("majority", 1, limits=limits)
    growth = grow(config, chain(*steps), {})
    [row] = rows(config, growth)
    assert (row["stop_reason"], row["answer"]) == (str(reason), "")
    assert growth.tree.ends_solution(len(growth.tree) - 1)
    [unit] = partition(PROBLEM, config, 1)
    assert node_table(unit, "policy", growth.tree)["stop_reason"].to_pylist()[-1] == str(reason)


def test_without_a_thinking_section_marks_mean_nothing() -> None:
    config = config_of("majority", 1, thinking=None)
    growth = grow(config, chain("Is it \\boxed{5}?", "never"), {})
    [row] = rows(config, growth)
    assert (row["answer"], row["stop_reason"]) == ("5", "boxed")


# ---- what the PRM reads


STEPS = ("Let me see", "5?</think>", "Add", "<think>no</think>up", "It is \\boxed{4}.")
SPOKEN = {"Add": 0.6, "up": 0.7, "It is \\boxed{4}.": 0.8}


def test_with_answer_the_prm_reads_what_is_spoken() -> None:
    config = config_of("best_of_n", 1)
    growth = grow(config, chain(*STEPS), SPOKEN)
    assert isinstance(growth.prm, ScriptedPRM)
    [paths] = growth.prm.calls
    read = [path.steps for path in paths]
    assert read == [("Add",), ("Add", "up"), ("Add", "up", "It is \\boxed{4}.")]
    assert all(path.unfinished for path in paths)
    [row] = rows(config, growth)
    assert row["rewards"] == [0.6, 0.7, 0.8]
    [unit] = partition(PROBLEM, config, 1)
    rewards = node_table(unit, "policy", growth.tree)["reward"].to_pylist()
    assert rewards == [None, None, 0.6, 0.7, 0.8]


def test_with_all_the_prm_reads_every_step_as_written() -> None:
    config = config_of("best_of_n", 1, thinking=ALL)
    growth = grow(config, chain(*STEPS), dict.fromkeys(STEPS, 0.5))
    assert isinstance(growth.prm, ScriptedPRM)
    [paths] = growth.prm.calls
    assert [path.steps for path in paths] == [STEPS[: i + 1] for i in range(5)]
    [row] = rows(config, growth)
    assert (row["rewards"], row["answer"]) == ([0.5] * 5, "4")


def test_children_are_read_as_a_whole_solution_is() -> None:
    config = config_of("best_of_n", 1)
    script = ScriptedPolicy(script=chain(*STEPS))
    stepwise = Growth(PROBLEM, script, ScriptedPRM(rewards=SPOKEN), config)

    async def expand_all() -> None:
        for node in range(ROOT, len(STEPS) - 1):
            await stepwise.expand(node, 0, 1)

    asyncio.run(expand_all())
    whole = grow(config, chain(*STEPS), SPOKEN)
    assert isinstance(stepwise.prm, ScriptedPRM)
    assert isinstance(whole.prm, ScriptedPRM)
    assert [path for paths in stepwise.prm.calls for path in paths] == list(*whole.prm.calls)
    assert stepwise.tree.rewards.tobytes() == whole.tree.rewards.tobytes()
    assert stepwise.tree.stops == whole.tree.stops


def test_one_request_for_a_whole_solution_knows_of_the_thinking() -> None:
    config = config_of("best_of_n", 1)
    whole = Whole(ScriptedPolicy(script=chain("\\boxed{5}", *STEPS, "never")))
    [unit] = partition(PROBLEM, config, 1)
    growth = asyncio.run(run_unit(unit, whole, ScriptedPRM(rewards=SPOKEN)))
    assert whole.written == 1
    assert [row["answer"] for row in rows(config, growth)] == ["4"]
    assert pickle.loads(pickle.dumps(R1)) == R1


def test_a_solution_without_a_spoken_step_scores_nought() -> None:
    config = config_of("best_of_n", 1, limits=Limits(max_steps=2))
    growth = grow(config, chain("Hm", "hm"), {})
    assert growth.score(1) == 0.0
    assert [row["rewards"] for row in rows(config, growth)] == [[]]


def test_dvts_over_thoughts_keeps_the_best_and_answers_what_is_spoken() -> None:
    config = config_of("dvts", 2, 2, thinking=ALL)
    script = {
        (): ["bad", "good</think>"],
        ("good</think>",): ["\\boxed{4}", "\\boxed{5}"],
    }
    rewards = {"bad": 0.1, "good</think>": 0.9, "\\boxed{4}": 0.8, "\\boxed{5}": 0.2}
    growth = grow(config, script, rewards)
    assert [row["answer"] for row in rows(config, growth)] == ["4", "5"]


# ---- recipes


def thinking_recipe(thinking: dict[str, Any], *strategies: str) -> dict[str, Any]:
    policy = {"name": "one", "model": "scripted", "engine": "fake", "thinking": thinking}
    plain = {"name": "two", "model": "scripted", "engine": "fake"}
    searches = [{"strategy": strategy, "n": 8} for strategy in strategies]
    return fake_recipe(policies=[policy, plain], searches=searches)


def test_a_recipe_gives_each_policy_its_own_thinking() -> None:
    recipe = parse_recipe(thinking_recipe({"end": "[/T]", "score": "all"}, *STRATEGIES))
    assert {c.thinking for c in recipe.search_configs("one")} == {
        Thinking("[/T]", score=Scored.ALL)
    }
    assert {c.thinking for c in recipe.search_configs("two")} == {None}


def test_a_recipe_with_one_mark_for_both_ends_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(thinking_recipe({"start": "</think>"}, "best_of_n", "majority"))
    assert str(caught.value) == (
        "policies.0.thinking.start and end are both '</think>': give each a mark of its own"
    )


def test_a_search_that_steers_by_answers_alone_is_refused() -> None:
    with pytest.raises(RecipeError, match="dvts compares steps while the policy thinks"):
        parse_recipe(thinking_recipe({}, "best_of_n", "dvts"))
    assert parse_recipe(thinking_recipe({"score": "all"}, "best_of_n", "dvts"))


def test_published_rules_know_no_thinking() -> None:
    recipe = thinking_recipe({}, "best_of_n", "majority")
    recipe["searches"][0]["compat"] = "compute_optimal_tts"
    with pytest.raises(RecipeError, match="compute_optimal_tts knows no thinking parts"):
        parse_recipe(recipe)
    recipe["searches"][0]["policies"] = ["two"]
    assert parse_recipe(recipe)


def test_a_look_ahead_goes_on_through_a_box_in_the_thinking() -> None:
    config = config_of("dvts", 1, 1, thinking=ALL, lookahead=2)
    script = chain("a", "\\boxed{5}", "b</think>", "\\boxed{4}")
    read = dict.fromkeys(["b</think>", "\\boxed{4}"], 0.5)
    growth = grow(config, script | {k: v * 3 for k, v in script.items()}, read)
    assert isinstance(growth.prm, ScriptedPRM)
    first = growth.prm.calls[0][0]
    assert first.steps == ("a", "\\boxed{5}", "b</think>")
    assert [row["answer"] for row in rows(config, growth)] == ["4"]


def test_the_section_has_the_defaults_of_the_search() -> None:
    recipe = parse_recipe(thinking_recipe({}, "best_of_n", "majority"))
    assert {config.thinking for config in recipe.search_configs("one")} == {Thinking()}
