"""The compiled choice says what torch says of the same rows: same tokens, bit for bit the same scores behind them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.kernels import native
from paceline.noise import Noise
from paceline.request import Request, SamplingParams
from paceline.sampling import Sampler

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no compiler here")
HEATS = [0.0, 1e-6, 1e-5, 0.05, 0.3, 0.8, 1.0, 1.7, 60.0]


def both(
    logits: Tensor, heats: list[float], seeds: list[int], length: int, drafts: int = 3
) -> tuple[list[int], list[int]]:
    """Compiled code serves where nothing is differentiated; elsewhere the sampler goes step by step."""
    requests = [
        Request("r", [1] * length, 1, SamplingParams(temperature=heat), seed)
        for heat, seed in zip(heats, seeds, strict=True)
    ]
    paths = [[7] * (i % (drafts + 1)) for i in range(len(requests))]
    with torch.inference_mode():
        short = Sampler().choose(logits, requests, paths)
    return short.tolist(), Sampler().choose(logits, requests, paths).tolist()


rows = st.lists(st.tuples(st.sampled_from(HEATS), st.integers(0, 2**63 - 1)), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(
    rows=rows,
    vocab_size=st.sampled_from([1, 2, 63, 64, 65, 300, 1001, 4096]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 6.0, 1e4, 1e37]),
    forbidden=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    flat=st.booleans(),
    length=st.integers(1, 3000),
)
def test_the_same_tokens(
    rows: list[tuple[float, int]], vocab_size: int, spread: float, forbidden: float, flat: bool, length: int
) -> None:
    """`flat`: few values, so that many are equal; `forbidden`: the share of tokens at -inf, perhaps all."""
    heats, seeds = [list(part) for part in zip(*rows, strict=True)]
    generator = torch.Generator().manual_seed(seeds[0] % 1000)
    logits = torch.randn(len(rows), vocab_size, generator=generator) * spread
    logits = (logits.round() if flat else logits).bfloat16()
    logits[torch.rand(logits.shape, generator=generator) < forbidden] = -torch.inf
    short, long = both(logits, heats, seeds, length)
    assert short == long


def test_the_last_bit_of_a_score_counts() -> None:
    """Two tokens whose scores are as near as bf16 logits allow."""
    noise = Noise().gumbel([(seed, 1) for seed in range(50_000)], 2)
    gaps = (noise[:, 0] - noise[:, 1]).bfloat16()
    logits = torch.stack((torch.zeros_like(gaps), gaps), dim=1)
    scores = logits.float() + noise
    near = scores.diff(dim=1)[:, 0].abs().lt(1e-5).nonzero().flatten().tolist()
    short, long = both(logits[near], [1.0] * len(near), near, 1, drafts=0)
    assert short == long == scores[near].argmax(-1).tolist()
    assert len(near) > 100


def test_a_token_far_behind_wins_with_the_largest_noise() -> None:
    """Compiled code leaves out noise that cannot matter; here it just does, or just does not."""
    noise = Noise().gumbel([(seed, 9) for seed in range(3000)], 200)
    top = noise[:, 64:].amax(1).topk(40)
    assert top.values.min() > 8
    won = []
    for seed, most in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        token = int(noise[seed, 64:].argmax()) + 64
        for lead in (-0.1, 0.1):
            logits = torch.full((1, 200), -1e9, dtype=torch.bfloat16)
            logits[0, token], logits[0, 3] = 0, most - float(noise[seed, 3]) + lead
            short, long = both(logits, [1.0], [seed], 9)
            assert short == long
            won.append(short == [token])
    assert True in won and False in won


def test_rates_are_log_probabilities_at_the_rows_temperature() -> None:
    logits = torch.randn(12, 777, generator=torch.Generator().manual_seed(1)).mul(3).bfloat16()
    requests = [Request("r", [1, 2], 1, SamplingParams(temperature=heat), 3) for heat in [0.0, 0.3, 1.0, 2.5] * 3]
    with torch.inference_mode():
        tokens, rated = Sampler().choose_and_rate(logits, requests, [[]] * 12)
        assert tokens == Sampler().choose(logits, requests, [[]] * 12).tolist()
    heats = torch.tensor([1.0, 0.3, 1.0, 2.5] * 3)[:, None]
    expected = (logits.double() / heats).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).flatten()
    torch.testing.assert_close(torch.tensor(rated, dtype=torch.float64), expected, rtol=1e-5, atol=1e-5)
    assert rated == pytest.approx(Sampler().choose_and_rate(logits, requests, [[]] * 12)[1], abs=1e-5)
