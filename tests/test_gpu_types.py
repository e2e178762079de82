"""GPU types, and the time of an iteration that follows from them."""

import pytest
from test_plan import recipe_of

from jobs.fit import model_fits
from jobs.gpu_types import GPU_TYPES, REACHED_BANDWIDTH, REACHED_FLOPS, gpu_type
from jobs.timing import ENGINE_OVERHEAD_S, engine_timing
from search.errors import RecipeError

pytestmark = pytest.mark.unit
H100 = GPU_TYPES["h100"]


def test_a_name_is_read_in_any_case_and_a_wrong_one_gets_the_nearest() -> None:
    assert gpu_type("H100") is H100
    with pytest.raises(RecipeError, match="unknown GPU type 'h10': did you mean 'h100'"):
        gpu_type("h10")


def test_the_roofline_of_a_known_model() -> None:
    [policy, _] = model_fits(recipe_of({"max_batch": 128}))
    timing = engine_timing(policy, H100, 400)
    parameters, token_bytes = 1_235_814_400, 32 * 1024
    per_s, flops = REACHED_BANDWIDTH * 3350e9, REACHED_FLOPS * 989e12
    assert timing.iteration_s == pytest.approx(ENGINE_OVERHEAD_S + 2 * parameters / per_s)
    assert timing.prompt_token_s == pytest.approx(2 * parameters / flops)
    read_s = 400 * token_bytes / per_s
    assert timing.sequence_s == pytest.approx(read_s + timing.prompt_token_s)
    assert timing.max_batch == 128


def test_the_batch_is_no_larger_than_the_cache() -> None:
    [policy, _] = model_fits(recipe_of({"max_batch": 100_000}))
    assert policy.kv_room_bytes
    expected = int(policy.kv_room_bytes / (32 * 1024 * 1000))
    assert engine_timing(policy, H100, 1000).max_batch == expected


def test_what_was_measured_goes_before_the_roofline() -> None:
    timing = {"iteration_s": 0.5, "sequence_s": 0.25, "prompt_token_s": 0.125}
    [policy, _] = model_fits(recipe_of({"timing": timing, "max_batch": 3}))
    measured = engine_timing(policy, H100, 400)
    found = measured.iteration_s, measured.sequence_s, measured.prompt_token_s
    assert (*found, measured.max_batch) == (0.5, 0.25, 0.125, 3)


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"model": "org/never-heard-of"}, "set policies.0.timing to what you measured"),
        ({"gpus_per_replica": 0}, "policies.0 runs on the CPU, of which no timing is known"),
        ({"engine": "fake"}, "policies.0: a fake engine takes as long as you say"),
    ],
)
def test_no_timing_is_made_up(policy: dict, line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        engine_timing(model_fits(recipe_of(policy))[0], H100, 400)
