"""Drawing tokens: right frequencies, the exact nucleus, and rows that ignore each other."""

import math
import random

import pytest
import torch
from scipy.stats import chisquare

from actors.engines.sampling import sample_tokens
from search.protocols import Sampling

DRAWS = 20_000
PROBABILITIES = (0.05, 0.5, 0.12, 0.3, 0.03)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def fixed_uniforms(count: int = DRAWS, seed: int = 7) -> list[float]:
    draw = random.Random(seed)
    return [draw.random() for _ in range(count)]


def counts_of(logits: torch.Tensor, sampling: Sampling) -> list[int]:
    """How often each token is drawn."""
    rows = logits.expand(DRAWS, -1)
    tokens, _ = sample_tokens(rows, [sampling] * DRAWS, fixed_uniforms())
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[0]).tolist()


def assert_frequencies(counts: list[int], weights: list[float]) -> None:
    """Tokens of weight 0 never occur, and the others as often as chance allows."""
    assert [count > 0 for count in counts] == [weight > 0 for weight in weights]
    expected = [weight * DRAWS / sum(weights) for weight in weights if weight > 0]
    if len(expected) > 1:
        assert chisquare([count for count in counts if count], expected).pvalue > 0.001


def nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """The definition: the fewest likeliest tokens whose probabilities reach top-p."""
    order = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))
    kept, reached = set[int](), 0.0
    for token in order:
        if reached >= top_p:
            break
        kept.add(token)
        reached += probabilities[token]
    return kept


def draw_one(logits: torch.Tensor, sampling: Sampling, uniform: float) -> tuple[int, float]:
    [token], [logprob] = sample_tokens(logits[None], [sampling], [uniform])
    return token, logprob


@pytest.mark.unit
def test_frequencies_are_the_probabilities() -> None:
    assert_frequencies(counts_of(logits_of(*PROBABILITIES), Sampling()), list(PROBABILITIES))


@pytest.mark.unit
@pytest.mark.parametrize("temperature", [0.5, 0.7, 2.0])
def test_temperature_sharpens_or_flattens(temperature: float) -> None:
    weights = [p ** (1 / temperature) for p in PROBABILITIES]
    assert_frequencies(counts_of(logits_of(*PROBABILITIES), Sampling(temperature)), weights)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {1}), (0.49, {1}), (0.51, {1, 3}), (0.81, {1, 2, 3}), (0.96, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_nucleus_and_its_proportions(top_p: float, kept: set[int]) -> None:
    weights = [p if token in kept else 0.0 for token, p in enumerate(PROBABILITIES)]
    assert_frequencies(counts_of(logits_of(*PROBABILITIES), Sampling(1.0, top_p)), weights)


@pytest.mark.unit
def test_the_nucleus_is_taken_after_temperature() -> None:
    weights = [p**2 for p in PROBABILITIES]
    kept = nucleus([weight / sum(weights) for weight in weights], 0.9)
    expected = [weight if token in kept else 0.0 for token, weight in enumerate(weights)]
    assert kept == {1, 3}
    assert_frequencies(counts_of(logits_of(*PROBABILITIES), Sampling(0.5, 0.9)), expected)


@pytest.mark.unit
def test_the_nucleus_is_exact_for_random_distributions() -> None:
    generator = torch.Generator().manual_seed(3)
    uniforms = [(place + 0.5) / 2000 for place in range(2000)]
    for top_p in (0.1, 0.3, 0.5, 0.7, 0.9):
        logits = torch.randn(12, generator=generator, dtype=torch.float64)
        rows = logits.expand(len(uniforms), -1)
        tokens, _ = sample_tokens(rows, [Sampling(1.0, top_p)] * len(uniforms), uniforms)
        assert set(tokens) == nucleus(torch.softmax(logits, -1).tolist(), top_p)


@pytest.mark.unit
def test_ties_go_by_token_id() -> None:
    rows = torch.zeros(100, 4)
    uniforms = [place / 100 for place in range(100)]
    tokens, _ = sample_tokens(rows, [Sampling(1.0, 0.5)] * 100, uniforms)
    assert tokens == [0] * 50 + [1] * 50
    assert draw_one(torch.zeros(4), Sampling(0.0), 0.9)[0] == 0


@pytest.mark.unit
def test_the_number_runs_through_the_tokens_in_order() -> None:
    logits = logits_of(0.25, 0.5, 0.25)
    drawn = [draw_one(logits, Sampling(), u)[0] for u in (0.0, 0.24, 0.26, 0.74, 0.76, 1 - 2**-53)]
    assert drawn == [0, 0, 1, 1, 2, 2]


@pytest.mark.unit
def test_an_impossible_token_is_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    drawn = {draw_one(logits, Sampling(), u)[0] for u in (0.0, 0.3, 0.7, 1 - 2**-53)}
    assert drawn == {1, 3}


@pytest.mark.unit
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_temperature_zero_takes_the_likeliest(uniform: float) -> None:
    token, logprob = draw_one(logits_of(*PROBABILITIES), Sampling(0.0, 0.1), uniform)
    assert token == 1
    assert logprob == pytest.approx(math.log(0.5))


@pytest.mark.unit
def test_logprob_is_the_models_own() -> None:
    for sampling in (Sampling(), Sampling(0.3), Sampling(2.0, 0.6)):
        for uniform in (0.1, 0.5, 0.99):
            token, logprob = draw_one(logits_of(*PROBABILITIES) + 3.0, sampling, uniform)
            assert logprob == pytest.approx(math.log(PROBABILITIES[token]))


@pytest.mark.unit
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_ignore_each_other(dtype: torch.dtype) -> None:
    logits = 3 * torch.randn(60, 50, generator=torch.Generator().manual_seed(1), dtype=dtype)
    settings = [Sampling(t, p) for t in (0.0, 0.3, 1.0, 1.7) for p in (0.2, 0.9, 1.0)]
    samplings = [settings[row % len(settings)] for row in range(60)]
    uniforms = fixed_uniforms(60)
    together = sample_tokens(logits, samplings, uniforms)
    alone = [draw_one(*row) for row in zip(logits, samplings, uniforms, strict=True)]
    assert list(zip(*together, strict=True)) == alone


@pytest.mark.unit
def test_a_row_keeps_its_whole_tail_beside_one_with_top_p() -> None:
    """Rounding must not cut off a row with top-p 1 where a neighbour asks for a nucleus."""
    logits = torch.tensor([-45.0, 0.0, 0.0, -45.0])
    alone, _ = draw_one(logits, Sampling(), 0.0)
    [beside, _], _ = sample_tokens(
        torch.stack([logits, logits]), [Sampling(), Sampling(1.0, 0.5)], [0.0, 0.0]
    )
    assert alone == beside == 0
