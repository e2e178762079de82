"""The rules of published systems, on scripted trees worked out by hand beside the clean rule.

In the trees a number after a step is its reward, `*` marks a kept step, `$` a step that ends
its solution by end of text, `|` one that hit its token limit, and `S` a solution.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search_properties import (
    POLICIES,
    PRMS,
    WORDS,
    calm_and_jittered,
    configs,
    problem_of,
    search,
)
from test_strategies import config_of, kept, search_script, solutions

from search.config import Compat, CompatOption, Limits, SearchConfig
from search.growth import Growth
from search.partition import partition, run_unit
from search.protocols import StopReason
from search.rows import node_table, solution_table
from search.scripted import Script, ScriptedPolicy, SeededPolicy, SeededPRM
from search.strategies import STRATEGIES

pytestmark = pytest.mark.unit

EOS, BOXED, CUT = StopReason.EOS, StopReason.BOXED, StopReason.MAX_TOKENS
SAL, TTS = Compat.SEARCH_AND_LEARN, Compat.COMPUTE_OPTIMAL_TTS


def grown(
    compat: Compat | None, config: SearchConfig, script: Script, rewards: Mapping[str, float]
) -> tuple[Growth, ScriptedPolicy]:
    return search_script(replace(config, compat=compat), script, rewards)


def in_order(growth: Growth) -> list[str]:
    """Solutions in the order in which the rule returns them."""
    ids = growth.tree.node_ids()
    return [ids[solution.node] for solution in growth.tree.solutions]


# ---- search_and_learn: beam

# N=4 M=2 keep 2.
# Round 1: a .5*  b$ .9 S  c .4*  d .1                    b leaves the pool
# Round 2: the pool a c a c: a1 .6*  c1$ .9 S  a2 .2  c2 .7*
# Round 3: the pool a1 c2 a1 c2: x$ S  z$ S  y$  w$       the first four that finished: b c1 x z
POOL: Script = {
    (): ["a", "b<eos>", "c", "d"],
    ("a",): ["a1", "a2"],
    ("c",): ["c1<eos>", "c2"],
    ("a", "a1"): ["x<eos>", "y<eos>"],
    ("c", "c2"): ["z<eos>", "w<eos>"],
}
POOL_REWARDS = {"a": 0.5, "b": 0.9, "c": 0.4, "d": 0.1, "a1": 0.6, "a2": 0.2, "c1": 0.9}
POOL_REWARDS |= {"c2": 0.7, "x": 0.1, "y": 0.8, "z": 0.2, "w": 0.9}


def test_search_and_learn_returns_the_first_n_that_finished() -> None:
    growth, policy = grown(SAL, config_of("beam", 4, 2), POOL, POOL_REWARDS)
    assert in_order(growth) == ["0:1", "0:2.0", "0:0.0.0", "0:2.1.0"]
    assert kept(growth) == {"0:0", "0:2", "0:0.0", "0:2.1", *in_order(growth)}
    # Copies of a beam are samples of one call.
    assert [(path, n) for path, n, *_ in policy.calls] == [
        ("", 4),
        ("a\n\n", 2),
        ("c\n\n", 2),
        ("a\n\na1\n\n", 2),
        ("c\n\nc2\n\n", 2),
    ]


def test_its_options_sort_what_finished_and_leave_out_equal_beams() -> None:
    config = replace(config_of("beam", 4, 2), compat=SAL)
    sort = replace(config, compat_options=(CompatOption.SORT_COMPLETED,))
    growth, _ = search_script(sort, POOL, POOL_REWARDS)
    # Of b .9, c1 .9, x .1, z .2, y .8, w .9 the best four, of equal ones the first.
    assert in_order(growth) == ["0:1", "0:2.0", "0:2.1.1", "0:0.0.1"]
    # N=4 M=2 keep 2.  Round 1: a .5*  a .5 (again)  b .3*  c .1     both a are kept by default
    script = {(): ["a", "a", "b", "c"], ("a",): ["x<eos>"] * 4, ("b",): ["y<eos>"] * 2}
    rewards = {"a": 0.5, "b": 0.3, "c": 0.1, "x": 0.5, "y": 0.5}
    growth, _ = search_script(config, script, rewards)
    assert in_order(growth) == ["0:0.0", "0:1.0", "0:0.1", "0:1.1"]
    once = replace(config, compat_options=(CompatOption.FILTER_DUPLICATES,))
    growth, _ = search_script(once, script, rewards)
    assert in_order(growth) == ["0:0.0", "0:2.0", "0:0.1", "0:2.1"]


def test_the_clean_beam_gives_a_finished_one_a_place_and_no_child() -> None:
    # Round 1: a .5*  b$ .9*  c .4  d .1    Round 2: b$ .9* S  a1 .6*  a2 .2
    # Round 3: b$ .9* S   x$ .1 S   y$ .8* S
    growth, _ = grown(None, config_of("beam", 4, 2), POOL, POOL_REWARDS)
    assert set(in_order(growth)) == {"0:1", "0:0.0.0", "0:0.0.1"}


def test_places_of_finished_beams_go_round_the_survivors() -> None:
    # N=4 M=2 keep 2.  Round 1: a .5*  b$ S  c$ S  d$ S       one is left: the pool a a a a
    # Round 2: e$ S  f$  g$  h$                               the first four: b c d e
    script = {(): ["a", "b<eos>", "c<eos>", "d<eos>"], ("a",): [f"{x}<eos>" for x in "efgh"]}
    growth, policy = grown(SAL, config_of("beam", 4, 2), script, dict.fromkeys("abcdefgh", 0.5))
    assert in_order(growth) == ["0:1", "0:2", "0:3", "0:0.0"]
    assert [n for _, n, *_ in policy.calls] == [4, 4]
    # Three survivors of a pool of eight: three, three and two copies.
    wide = {(): ["a", "b", "c", *["x<eos>"] * 5]}
    wide |= {(name,): [f"{name}<eos>"] * 4 for name in "abc"}
    _, policy = grown(SAL, config_of("beam", 8, 2), wide, dict.fromkeys("abcx", 0.5))
    assert [n for _, n, *_ in policy.calls] == [8, 3, 3, 2]


def test_search_and_learn_keeps_the_later_of_equal_beams() -> None:
    # N=4 M=2 keep 2.  Round 1: a .5  b .5  c .5*  d .5*      the clean rule keeps a and b
    script = {(): list("abcd")} | {(name,): ["e<eos>", "f<eos>"] for name in "abcd"}
    rewards = dict.fromkeys("abcdef", 0.5)
    growth, _ = grown(SAL, config_of("beam", 4, 2), script, rewards)
    assert in_order(growth) == ["0:2.0", "0:3.0", "0:2.1", "0:3.1"]
    growth, _ = grown(None, config_of("beam", 4, 2), script, rewards)
    assert set(in_order(growth)) == {"0:0.0", "0:0.1", "0:1.0", "0:1.1"}


def test_a_step_at_its_limit_ends_a_beam_of_search_and_learn() -> None:
    # N=2 M=2 keep 1.  Round 1: a| .9 S  b .1*   Round 2: c$ S  d$     the clean rule goes on from a
    script = {(): ["a<cut>", "b"], ("b",): ["c<eos>", "d<eos>"], ("a<cut>",): ["e<eos>", "f<eos>"]}
    rewards = {"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.5, "e": 0.5, "f": 0.5}
    growth, _ = grown(SAL, config_of("beam", 2, 2), script, rewards)
    assert solutions(growth) == {"0:0": CUT, "0:1.0": EOS}
    growth, _ = grown(None, config_of("beam", 2, 2), script, rewards)
    assert solutions(growth) == {"0:0.0": EOS, "0:0.1": EOS}


def test_a_box_does_not_end_a_beam_of_search_and_learn() -> None:
    # N=2 M=2 keep 1.  Round 1: box .9*  b .1   Round 2: c$ S  d$ S    the clean rule ends with box
    box = "so \\boxed{42}"
    script = {(): [box, "b"], (box,): ["c<eos>", "d<eos>"]}
    rewards = {box: 0.9, "b": 0.1, "c": 0.5, "d": 0.5}
    growth, _ = grown(SAL, config_of("beam", 2, 2), script, rewards)
    assert solutions(growth) == {"0:0.0": EOS, "0:0.1": EOS}
    growth, _ = grown(None, config_of("beam", 2, 2), script, rewards)
    assert solutions(growth) == {"0:0": BOXED}


# N=2 M=2 keep 1, two iterations: the second is written without a delimiter, to its end.
# Round 1: a .9*  b .1      Round 2: c .5 c1 .6 c2$ .7 S    d$ .2 S
LAST: Script = {
    (): ["a", "b"],
    ("a",): ["c", "d<eos>"],
    ("a", "c"): ["c1"],
    ("a", "c", "c1"): ["c2<eos>"],
}
LAST_REWARDS = {"a": 0.9, "b": 0.1, "c": 0.5, "c1": 0.6, "c2": 0.7, "d": 0.2}
TWO_ITERATIONS = Limits(max_steps=2)


@pytest.mark.parametrize("strategy", ["beam", "dvts"])
def test_the_last_iteration_of_search_and_learn_writes_to_the_end(strategy: str) -> None:
    config = config_of(strategy, 2, 2, limits=TWO_ITERATIONS)
    growth, _ = grown(SAL, config, LAST, LAST_REWARDS)
    assert solutions(growth) == {"0:0.0.0.0": EOS, "0:0.1": EOS}
    assert growth.tree.scored_steps(growth.tree.solutions[0].node) == [0.9, 0.5, 0.6, 0.7]
    growth, _ = grown(None, config, LAST, LAST_REWARDS)
    ended = {"0:0.0": StopReason.MAX_STEPS, "0:0.1": EOS}
    assert solutions(growth) == ended


def test_the_last_iteration_has_the_tokens_of_one_step() -> None:
    # After a. (three tokens) two calls of at most seven: c. c1. make seven, so c2 is never written.
    limits = Limits(max_steps=2, max_step_tokens=7)
    growth, _ = grown(SAL, config_of("beam", 2, 2, limits=limits), LAST, LAST_REWARDS)
    assert solutions(growth) == {"0:0.0.0": CUT, "0:0.1": EOS}


# ---- search_and_learn: dvts and best_of_n

# N=2 M=2: a .2   b .9* -> "x boxed{" .8* S   y .5 S (unfinished)
OPEN_BOX: Script = {
    (): ["a", "b"],
    ("b",): ["x boxed{", "y"],
    ("b", "x boxed{"): ["z<eos>", "w<eos>"],
}
OPEN_BOX_REWARDS = {"a": 0.2, "b": 0.9, "x boxed{": 0.8, "y": 0.5, "z": 0.5, "w": 0.5}


def test_dvts_of_search_and_learn_ends_at_the_word_boxed() -> None:
    growth, _ = grown(SAL, config_of("dvts", 2, 2), OPEN_BOX, OPEN_BOX_REWARDS)
    assert solutions(growth) == {"0:1.0": BOXED, "0:1.1": StopReason.UNFINISHED}
    assert kept(growth) == {"0:1", "0:1.0"}
    growth, _ = grown(None, config_of("dvts", 2, 2), OPEN_BOX, OPEN_BOX_REWARDS)
    assert solutions(growth) == {"0:1.0.0": EOS, "0:1.0.1": EOS}


def test_dvts_of_search_and_learn_keeps_the_first_of_equal_candidates() -> None:
    script = {(): ["a<eos>", "b<eos>", "c<eos>", "d<eos>"]}
    growth, _ = grown(SAL, config_of("dvts", 4, 2), script, dict.fromkeys("abcd", 0.5))
    assert kept(growth) == {"0:0", "1:0"}
    assert len(solutions(growth)) == 4


def test_a_cut_step_ends_a_subtree_of_search_and_learn() -> None:
    script = {(): ["a<cut>", "b"], ("a<cut>",): ["c<eos>", "d<eos>"]}
    rewards = {"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.5}
    growth, _ = grown(SAL, config_of("dvts", 2, 2), script, rewards)
    assert solutions(growth) == {"0:0": CUT, "0:1": StopReason.UNFINISHED}
    growth, _ = grown(None, config_of("dvts", 2, 2), script, rewards)
    assert solutions(growth) == {"0:0.0": EOS, "0:0.1": EOS}


# a (> a1) .3    b (> b1) .6* S
LOOK: Script = {
    (): ["a", "b"],
    ("a",): ["a1", "x<eos>", "y<eos>"],
    ("b",): ["b1", "x<eos>", "y<eos>"],
}
LOOK_REWARDS = {"a": 0.9, "b": 0.1, "a1": 0.3, "b1": 0.6, "x": 0.5, "y": 0.4}


def test_only_dvts_of_search_and_learn_reads_ahead() -> None:
    dvts = replace(config_of("dvts", 2, 2), lookahead=1)
    growth, _ = grown(SAL, dvts, LOOK, LOOK_REWARDS)
    assert kept(growth) == {"0:1", "0:1.0"}
    assert growth.budget.lookahead_policy_tokens == len("a1..b1..")
    script = LOOK | {("a",): ["x<eos>", "y<eos>"]}
    beam = replace(config_of("beam", 2, 2), lookahead=1)
    growth, policy = grown(SAL, beam, script, LOOK_REWARDS)
    assert kept(growth) == {"0:0", "0:0.0", "0:0.1"}
    assert growth.budget.lookahead_policy_tokens == 0
    assert len(policy.calls) == 2


def test_nothing_but_the_end_of_text_ends_a_published_sample() -> None:
    box = "so \\boxed{1}"
    script = {(): [box], (box,): ["b"], (box, "b"): ["c<eos>"]}
    config = config_of("best_of_n", 1, 1, limits=Limits(max_steps=2))
    for compat, ended in ((None, {"0:0": BOXED}), (SAL, {"0:0.0.0": EOS}), (TTS, {"0:0.0.0": EOS})):
        growth, _ = grown(compat, config, script, {box: 0.1, "b": 0.2, "c": 0.3})
        assert solutions(growth) == ended


# ---- compute_optimal_tts: beam

# N=4 M=2 keep 2.
# Round 1: a .5*  b$ .8* S  c .3  d .1        b has won a place and holds it
# Round 2: a1 .9  a2$ .95* S                  one place is left: a2
HELD: Script = {
    (): ["a", "b<eos>", "c", "d"],
    ("a",): ["a1", "a2<eos>"],
    ("a", "a1"): ["x<eos>", "y<eos>"],
}
HELD_REWARDS = {"a": 0.5, "b": 0.8, "c": 0.3, "d": 0.1, "a1": 0.9, "a2": 0.95, "x": 1.0, "y": 0.1}


def test_a_finished_node_holds_the_place_that_it_won() -> None:
    growth, policy = grown(TTS, config_of("beam", 4, 2), HELD, HELD_REWARDS)
    assert in_order(growth) == ["0:1", "0:0.1"]
    assert kept(growth) == {"0:0", "0:1", "0:0.1"}
    assert [n for _, n, *_ in policy.calls] == [4, 2]


def test_the_clean_beam_lets_a_finished_node_be_outranked() -> None:
    # Round 2: b$ .8   a1 .9*  a2$ .95*    Round 3: a2$ .95* S   x$ 1.0* S   y$ .1 S
    growth, _ = grown(None, config_of("beam", 4, 2), HELD, HELD_REWARDS)
    assert set(in_order(growth)) == {"0:0.1", "0:0.0.0", "0:0.0.1"}


def test_a_finished_node_that_wins_no_place_is_lost() -> None:
    # N=4 M=2 keep 2.  Round 1: a .9*  b .8*  c$ .7  d$ .6     c and d are no solutions
    # Round 2: e$ .5* S  f$ .4  g$ .3  h$ .45* S
    script = {(): ["a", "b", "c<eos>", "d<eos>"]}
    script |= {("a",): ["e<eos>", "f<eos>"], ("b",): ["g<eos>", "h<eos>"]}
    rewards = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6, "e": 0.5, "f": 0.4, "g": 0.3, "h": 0.45}
    growth, _ = grown(TTS, config_of("beam", 4, 2), script, rewards)
    assert in_order(growth) == ["0:0.0", "0:1.1"]
    growth, _ = grown(None, config_of("beam", 4, 2), script, rewards)
    assert set(in_order(growth)) == {"0:0.0", "0:0.1", "0:1.0", "0:1.1"}


def test_equal_scores_are_told_apart_by_their_parents() -> None:
    # N=4 M=2 keep 2.  Round 1: a .6*  b .9*  c .1  d .1.  Round 2: all .5: the children of b win
    script = {(): ["a", "b", "c", "d"]}
    script |= {("a",): ["e<eos>", "f<eos>"], ("b",): ["g<eos>", "h<eos>"]}
    rewards = {"a": 0.6, "b": 0.9, "c": 0.1, "d": 0.1} | dict.fromkeys("efgh", 0.5)
    growth, _ = grown(TTS, config_of("beam", 4, 2), script, rewards)
    assert in_order(growth) == ["0:1.0", "0:1.1"]


def test_equal_empty_and_cut_steps_are_no_candidates() -> None:
    # N=8 M=4 keep 2.  Round 1: a .5*  a (again)  b| .9  (nothing) .  c .4*  c$ (again)  d$ .3  e .1
    script = {(): ["a", "a", "b<cut>", " <eos>", "c", "c<eos>", "d<eos>", "e"]}
    script |= {("a",): ["f<eos>"] * 4, ("c",): ["g<eos>", "h<eos>", "g<eos>", "h<eos>"]}
    rewards = {"a": 0.5, "c": 0.4, "d": 0.3, "e": 0.1, "f": 0.2, "g": 0.6, "h": 0.7}
    growth, _ = grown(TTS, config_of("beam", 8, 4), script, rewards)
    assert in_order(growth) == ["0:4.1", "0:4.0"]
    assert kept(growth) == {"0:0", "0:4", "0:4.0", "0:4.1"}
    scored = sum(reward == reward for reward in growth.tree.rewards)
    assert scored == 4 + 1 + 2


@pytest.mark.parametrize("compat", [None, SAL])
def test_an_empty_step_is_a_candidate_elsewhere(compat: Compat | None) -> None:
    # N=2 M=2 keep 1.  Round 1: (nothing) 0*  a$ .9 S or *, by the rule
    script = {(): [" ", "a"], (" ",): ["b<eos>", "c<eos>"], ("a",): ["d<eos>", "e<eos>"]}
    rewards = {"a": 0.0, "b": 0.5, "c": 0.4, "d": 0.5, "e": 0.4}
    growth, policy = grown(compat, config_of("beam", 2, 2), script, rewards)
    # Neither scores more than 0: the default keeps the earlier one, search_and_learn the later.
    assert policy.calls[1][0] == (" \n\n" if compat is None else "a\n\n")
    assert len(growth.tree) == 4
    again = {(): [" ", " "], (" ",): ["b<eos>", "c<eos>"]}
    growth, _ = grown(compat, config_of("beam", 2, 2), again, rewards)
    assert len(solutions(growth)) == 2


def test_a_node_without_a_candidate_is_asked_again_and_then_ends() -> None:
    # N=2 M=2 keep 1.  Round 1: a .9*  b .1.  Of a: x| y|, three times more, and it is given up.
    script = {(): ["a", "b"], ("a",): ["x<cut>", "y<cut>"] * 4}
    growth, policy = grown(TTS, config_of("beam", 2, 2), script, {"a": 0.9, "b": 0.1})
    assert solutions(growth) == {"0:0": StopReason.UNFINISHED}
    assert [(path, n) for path, n, *_ in policy.calls] == [("", 2), *[("a\n\n", 2)] * 4]
    # A later answer may do: its steps are the next ones of the node.
    script = {(): ["a", "b"], ("a",): ["x<cut>", "y<cut>", "z<eos>", "w<cut>"]}
    growth, _ = grown(TTS, config_of("beam", 2, 2), script, {"a": 0.9, "b": 0.1, "z": 0.5})
    assert solutions(growth) == {"0:0.2": EOS}


def test_the_root_takes_its_second_answer_as_it_is() -> None:
    # N=2 M=2 keep 1.  First a| a|, then b| .9* b| .9: cut and equal ones, but they are taken.
    script = {(): ["a<cut>", "a<cut>", "b<cut>", "b<cut>"], ("b<cut>",): ["c<eos>", "d<eos>"]}
    growth, _ = grown(TTS, config_of("beam", 2, 2), script, {"b": 0.9, "c": 0.2, "d": 0.3})
    assert solutions(growth) == {"0:2.1": EOS}
    assert kept(growth) == {"0:2", "0:2.1"}


def test_a_tree_ends_at_the_word_boxed_and_at_its_depth() -> None:
    open_box = "x \\boxed{"
    script = {(): ["a", "b"], ("a",): [open_box, "c"], ("b",): ["d", "e"]}
    rewards = {"a": 0.9, "b": 0.1, open_box: 0.8, "c": 0.2, "d": 0.1, "e": 0.1}
    growth, _ = grown(TTS, config_of("beam", 2, 2), script, rewards)
    assert solutions(growth) == {"0:0.0": BOXED}
    limited = config_of("beam", 2, 2, limits=Limits(max_steps=1))
    growth, _ = grown(TTS, limited, script, rewards)
    assert solutions(growth) == {"0:0": StopReason.MAX_STEPS}


# ---- compute_optimal_tts: dvts and best_of_n


def test_each_tree_of_a_dvts_ends_with_one_solution() -> None:
    # N=4 M=2.  subtree 0: a .2  b$ .9* S     subtree 1: c .4*  d$ .3 -> e$ .6* S  f$ .1
    script = {(): ["a", "b<eos>", "c", "d<eos>"], ("c",): ["e<eos>", "f<eos>"]}
    rewards = {"a": 0.2, "b": 0.9, "c": 0.4, "d": 0.3, "e": 0.6, "f": 0.1}
    growth, _ = grown(TTS, config_of("dvts", 4, 2), script, rewards)
    assert solutions(growth) == {"0:1": EOS, "1:0.0": EOS}
    growth, _ = grown(None, config_of("dvts", 4, 2), script, rewards)
    assert set(in_order(growth)) == {"0:0", "0:1", "1:0.0", "1:0.1"}


def test_a_tree_of_a_dvts_ends_at_the_word_boxed_and_at_its_depth() -> None:
    # N=2 M=2: a .9* -> "x \\boxed{" .8* S   c .2          at a depth of 1: a .9* S
    open_box = "x \\boxed{"
    script = {(): ["a", "b"], ("a",): [open_box, "c"]}
    rewards = {"a": 0.9, "b": 0.1, open_box: 0.8, "c": 0.2}
    growth, _ = grown(TTS, config_of("dvts", 2, 2), script, rewards)
    assert solutions(growth) == {"0:0.0": BOXED}
    limited = config_of("dvts", 2, 2, limits=Limits(max_steps=1))
    growth, _ = grown(TTS, limited, script, rewards)
    assert solutions(growth) == {"0:0": StopReason.MAX_STEPS}


def test_an_empty_sample_is_written_once_more() -> None:
    config = config_of("best_of_n", 1, 1)
    for second, ended in (("a<eos>", {"0:1": EOS}), ("<eos>", {"0:1": EOS})):
        growth, _ = grown(TTS, config, {(): ["<eos>", second]}, {"a": 0.5})
        assert solutions(growth) == ended
    growth, _ = grown(SAL, config, {(): ["<eos>"]}, {})
    assert solutions(growth) == {"0:0": EOS}


def test_a_sample_that_is_cut_off_is_written_once_more() -> None:
    # Samples of at most four tokens, a delimiter has two: a.bb are cut off, then c$; d.ee, f.gg.
    limits = Limits(max_solution_tokens=5)
    script = {(): ["a", "c<eos>"], ("a",): ["bbbb"], ("c",): []}
    config = config_of("best_of_n", 1, 1, limits=limits)
    rewards = {"a": 0.1, "bb": 0.2, "c": 0.3}
    growth, _ = grown(TTS, config, script, rewards)
    assert solutions(growth) == {"0:1": EOS}
    assert kept(growth) == {"0:1"}
    script = {(): ["a", "d"], ("a",): ["bbbb"], ("d",): ["eeee"]}
    growth, _ = grown(TTS, config, script, rewards | {"d": 0.4, "ee": 0.5})
    assert solutions(growth) == {"0:1.0": CUT}
    growth, _ = grown(SAL, config, script, rewards)
    assert solutions(growth) == {"0:0.0": CUT}


# ---- what holds for every search

SPLIT = [
    replace(config_of(strategy, 12, 2), compat=compat, lookahead=lookahead)
    for strategy in ("dvts", "best_of_n")
    for compat, lookahead in ((SAL, 0), (TTS, 0), *((None, 1), (SAL, 1)) * (strategy == "dvts"))
]


@pytest.mark.parametrize("config", SPLIT, ids=lambda each: f"{each.strategy} {each.variant}")
def test_no_size_of_units_changes_a_variant(config: SearchConfig) -> None:
    def rows(size: int) -> list[object]:
        found: list[object] = []
        for unit in partition(problem_of("p1"), config, size):
            growth = asyncio.run(run_unit(unit, SeededPolicy(), SeededPRM()))
            for table in (node_table(unit, "x", growth.tree), solution_table(unit, "x", growth)):
                found += table.drop_columns(["unit_id"]).to_pylist()
        return sorted(found, key=repr)

    assert rows(2) == rows(6) == rows(12)


modest = settings(max_examples=30, deadline=None)
PUBLISHED = [name for name, strategy in STRATEGIES.items() if strategy.published]


@st.composite
def published(draw: st.DrawFn) -> SearchConfig:
    config = draw(configs(PUBLISHED))
    return replace(config, compat=draw(st.sampled_from(Compat)))


@modest
@given(published(), WORDS, POLICIES, PRMS, st.integers(0, 999))
def test_timing_changes_no_table(
    config: SearchConfig, name: str, policy: SeededPolicy, prm: SeededPRM, jitter: int
) -> None:
    calm, jittered = calm_and_jittered(config, name, policy, prm, jitter)
    if config.strategy == "beam":
        assert in_order(calm) == in_order(jittered)


@modest
@given(published(), WORDS, POLICIES, PRMS)
def test_how_many_solutions_a_published_rule_returns(
    config: SearchConfig, name: str, policy: SeededPolicy, prm: SeededPRM
) -> None:
    growth = search(config, name, policy, prm)
    tree = growth.tree
    assert len({solution.node for solution in tree.solutions}) == len(tree.solutions) > 0
    assert all(tokens <= config.limits.max_solution_tokens for tokens in tree.path_tokens)
    kept_at_all = config.n if config.strategy == "best_of_n" else config.n // config.branching
    if config.compat is SAL:
        assert len(tree.solutions) == config.n
    elif config.strategy == "beam":
        assert len(tree.solutions) <= kept_at_all
    else:
        assert len(tree.solutions) == kept_at_all
