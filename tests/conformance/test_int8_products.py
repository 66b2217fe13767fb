"""Products of codes are what the whole numbers say, bit for bit, and a row is its own: in any tile, on any number of
threads. Experts in codes: `test_gated_experts`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paceline.formats import dequantise_int8, quantise_int8
from paceline.kernels import linear as kernel
from paceline.kernels import pack_weight, packed_linear

BF16 = torch.bfloat16
ROWS = 41
SHAPES = [(32, 64), (48, 32), (256, 576), (96, 256), (2048, 96)]
needs_codes = pytest.mark.skipif(
    pack_weight(torch.ones(32, 32), codes=True) is None, reason="this CPU has no int8 products of our own"
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def rows_in_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers up to 127 [rows, n] and a scale a row [rows, 1], as tile.h makes them."""
    scale = x.float().abs().amax(1, keepdim=True) / 127
    factor = torch.where(scale > 1e-30, 1 / scale, 0.0)
    return (x.float() * factor).round().to(torch.int64), scale


def formula(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (codes, scale), (weights, factors) = rows_in_codes(x), quantise_int8(weight)
    sums = codes @ weights.T.to(torch.int64)
    made = sums.to(torch.float32) * (scale * factors.T)
    return (made if bias is None else made + bias.float()).to(BF16)


@needs_codes
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@torch.inference_mode()
def test_it_is_the_formula_and_a_row_is_its_own(
    inputs: int, outputs: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "SHARED_AT_LEAST", 0)
    x, weight = draw(ROWS, inputs), draw(outputs, inputs, seed=1) / inputs**0.5
    x[3], x[5] = 0, -x[5].abs()  # nothing; all on one side
    bias, packed, before = draw(outputs, seed=2) if biased else None, pack_weight(weight, codes=True), x.clone()
    assert packed is not None
    threads = torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        whole = packed_linear(x, packed, bias)
        assert torch.equal(whole, formula(x, weight, bias)) and torch.equal(x, before)
    torch.set_num_threads(threads)
    for cut in (1, 2, 5, 12, 13, 30):
        assert torch.equal(torch.cat([packed_linear(part, packed, bias) for part in x.split(cut)]), whole)
    plain = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert (whole.double() - plain).norm() < 0.02 * plain.norm()


@needs_codes
@torch.inference_mode()
def test_a_row_that_is_no_number_spoils_no_other() -> None:
    x, packed = draw(9, 64), pack_weight(draw(96, 64, seed=1), codes=True)
    assert packed is not None
    whole = packed_linear(x, packed)
    x[2, 5], x[4, 7] = float("nan"), float("inf")
    others = torch.tensor([0, 1, 3, 5, 6, 7, 8])
    assert torch.equal(packed_linear(x, packed)[others], whole[others])


@needs_codes
def test_codes_that_a_file_holds_are_the_same_codes() -> None:
    """What is packed of a quantised weight is what is packed of the weight itself."""
    weight = draw(64, 96)
    again, packed = (pack_weight(w, codes=True) for w in (dequantise_int8(*quantise_int8(weight)), weight))
    assert again is not None and packed is not None
    assert torch.equal(again[:, 256:], packed[:, 256:]) and torch.equal(again[:, :128], packed[:, :128])
    scales = (part[:, 128:256].view(torch.float32) for part in (again, packed))
    torch.testing.assert_close(*scales, rtol=2**-8, atol=0)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (32, (1 << 16) + 32)], ids=str)
def test_other_sizes_take_another_way(shape: tuple[int, int]) -> None:
    assert pack_weight(torch.zeros(shape, dtype=BF16), codes=True) is None
