"""Noise keyed by place: the same bits whoever asks, and statistically noise."""

from __future__ import annotations

import math

import pytest
import torch

from paceline.kernels import native
from paceline.noise import Noise, place_key

MASK = 2**32 - 1


def hash32(x: int) -> int:
    """lowbias32 on Python integers."""
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        x = ((x ^ (x >> shift)) * multiplier) & MASK
    return x ^ (x >> 15)


def gumbel(seed: int, position: int, token: int) -> float:
    """The definition, in integers of any length and in float64."""
    key = place_key(seed, position) ^ 2**63
    x = ((hash32(token + 1) ^ (key & MASK)) * 0x21F0AAAD) & MASK
    x = (((x ^ (x >> 15)) ^ (key >> 32)) * 0xD35A2D97) & MASK
    signed = x - 2**32 if x >= 2**31 else x
    bits = signed ^ (signed >> 15)
    assert 0 <= bits < 2**31
    return -math.log(-math.log1p(-(bits + 0.5) * 2**-31))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["as it comes", "plain torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, where there is a compiler; or not."""
    if request.param == "plain torch":
        monkeypatch.setattr(native, "library", lambda: None)


def test_noise_equals_its_definition_in_exact_integers(way: None) -> None:
    places = [(0, 0), (7, 3), (2**63 - 1, 10**6), (123456789, 1)]
    got = Noise().gumbel(places, 300)
    expected = torch.tensor([[gumbel(*place, token) for token in range(300)] for place in places])
    # float32 is coarse where v is near 1: the losing end of the scale
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_place_key_is_splitmix64() -> None:
    # first outputs of the reference generator from states 0 and 1234567
    assert place_key(0, 0) == _reference(_reference(0))
    assert _reference(0) == 0xE220A8397B1DCDAF
    assert _reference(1234567) == 6457827717110365317


def _reference(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_a_value_depends_on_nothing_but_its_place(threads: None, way: None) -> None:
    """Same bits alone or among others, at any row, for any vocabulary, from a fresh generator or a used one."""
    places = [(seed, position) for seed in (0, 5, 2**40) for position in (0, 1, 977)]
    used = Noise()
    whole = used.gumbel(places, 40009)
    for vocab_size in (1, 7, 16, 33, 1000, 4096, 40009):
        for noise in (used, Noise()):
            assert torch.equal(noise.gumbel(places, vocab_size), whole[:, :vocab_size])
    for row, place in enumerate(places):
        assert torch.equal(used.gumbel([place], 4097), whole[row : row + 1, :4097])
    order = [4, 0, 8, 4]
    assert torch.equal(used.gumbel([places[i] for i in order], 1003), whole[order, :1003])


def test_noise_has_gumbels_distribution() -> None:
    """Kolmogorov-Smirnov against exp(-exp(-g)), over tokens, over positions and over seeds."""
    noise = Noise()
    samples = (
        noise.gumbel([(1, 2)], 50_000).flatten(),
        noise.gumbel([(9, position) for position in range(50_000)], 3)[:, 2],
        noise.gumbel([(seed, 40) for seed in range(50_000)], 3)[:, 1],
    )
    for sample in samples:
        uniform = torch.exp(-torch.exp(-sample.double())).sort().values
        ideal = (torch.arange(len(uniform), dtype=torch.float64) + 0.5) / len(uniform)
        assert (uniform - ideal).abs().max() < 1.95 / math.sqrt(len(uniform))  # p = 0.001


def test_neighbours_are_not_correlated() -> None:
    """Neighbouring seeds, positions and tokens, and the same token 1 to 4 places away."""
    noise = Noise()
    grid = noise.gumbel([(seed, position) for seed in range(40) for position in range(50)], 64).view(40, 50, 64)
    uniform = torch.exp(-torch.exp(-grid.double())) - 0.5
    for dim in range(3):
        for lag in (1, 2, 4):
            here, there = uniform.narrow(dim, 0, grid.shape[dim] - lag), uniform.narrow(dim, lag, grid.shape[dim] - lag)
            correlation = (here * there).mean() / (1 / 12)
            assert abs(correlation) < 4.5 / math.sqrt(here.numel())


def test_every_bit_of_the_tail_is_reached() -> None:
    """The large values decide: P(g > x) must hold far out, where float32 uniforms would be coarse."""
    noise = Noise()
    count = 2000 * 4096
    over = sum(
        int((noise.gumbel([(seed, 0) for seed in range(s, s + 100)], 4096) > 12).sum()) for s in range(0, 2000, 100)
    )
    expected = count * -math.expm1(-math.exp(-12))
    assert abs(over - expected) < 5 * math.sqrt(expected)
