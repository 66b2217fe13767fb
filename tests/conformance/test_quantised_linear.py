"""Products with int8 and FP8 weights: right against float64, and a row has the same bits among any others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from paceline.formats import FORMATS, FP8, INT8, Format
from paceline.kernels import native, quantised_linear

SHAPES = [(96, 64), (70, 100), (37, 2048), (130, 1537), (33, 31)]  # outputs, inputs
compiled = pytest.mark.skipif(
    native.library() is None or not hasattr(native.library(), "int8_linear"),
    reason="this machine has no C compiler, or multiplies no bf16 itself",
)


@pytest.fixture(params=[pytest.param("compiled", marks=compiled), "plain torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain torch":
        monkeypatch.setattr(native, "library", lambda: None)
    return str(request.param)


def weight_of(form: Format, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs))
    codes, scale = form.quantise(weight)
    return codes, form.spread(scale, outputs)


def rows_of(rows: int, inputs: int) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(torch.bfloat16)


def cuts(rows: int) -> Iterator[slice]:
    """Every row count from 1 to 64, and rows alone from the middle."""
    yield from (slice(0, n) for n in range(1, min(rows, 65)))
    yield from (slice(n, n + 1) for n in range(7, rows, 50))
    yield from (slice(3, 103), slice(101, rows))


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@torch.inference_mode()
def test_it_equals_the_exact_product(way: str, form: Format, outputs: int, inputs: int) -> None:
    codes, scale = weight_of(form, outputs, inputs)
    x = rows_of(20, inputs)
    weight = form.dequantise(codes, scale)
    exact = x.double() @ (weight if form is INT8 else weight.to(x.dtype)).double().T
    found = quantised_linear(x, codes, scale)
    assert found.dtype == x.dtype
    torch.testing.assert_close(found.double(), exact, rtol=2**-6, atol=4e-3 * inputs**0.5)
    in_float = quantised_linear(x.float(), codes, scale)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(in_float.double(), expected, rtol=1e-5, atol=1e-4)
    bias = 10 * torch.randn(outputs, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    with_bias = quantised_linear(x, codes, scale, bias)
    torch.testing.assert_close(with_bias.double(), exact + bias.double(), rtol=2**-6, atol=8e-3 * inputs**0.5)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@torch.inference_mode()
def test_a_row_is_its_own(way: str, form: Format, outputs: int, inputs: int) -> None:
    codes, scale = weight_of(form, outputs, inputs)
    x, bias = rows_of(128, inputs), rows_of(1, outputs)[0]
    whole = quantised_linear(x, codes, scale, bias)
    for cut in cuts(len(x)):
        assert torch.equal(quantised_linear(x[cut], codes, scale, bias), whole[cut]), cut


@torch.inference_mode()
def test_a_row_is_its_own_in_a_million_numbers(way: str) -> None:
    codes, scale = weight_of(INT8, 2048, 512)
    x = rows_of(512, 512)
    whole = quantised_linear(x, codes, scale)
    assert whole.numel() > 1_000_000
    for step in (1, 5, 100):
        parts = [quantised_linear(part, codes, scale) for part in x.split(step)]
        assert torch.equal(torch.cat(parts), whole)


@torch.inference_mode()
def test_fp8_says_what_its_dequantised_weight_says() -> None:
    """Bit for bit the product with a weight that was loaded as plain numbers."""
    codes, scale = weight_of(FP8, 200, 300)
    weight, x = FP8.dequantise(codes, scale).to(torch.bfloat16), rows_of(9, 300)
    assert torch.equal(quantised_linear(x, codes, scale), torch.nn.functional.linear(x, weight))


@compiled
@torch.inference_mode()
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a view: experts are slices of one stack."""
    codes, scale = weight_of(INT8, 103, 96)
    x = rows_of(5, 96)
    whole = quantised_linear(x, codes, scale)
    assert torch.equal(quantised_linear(x[:, :], torch.stack((codes, codes))[1], scale), whole)
    monkeypatch.setattr(native, "SHARED_AT_LEAST", 0)
    for threads in (2, 3, 40, 200):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(quantised_linear(x, codes, scale), whole)


@torch.inference_mode()
def test_no_rows_are_no_error(way: str) -> None:
    codes, scale = weight_of(INT8, 64, 32)
    assert quantised_linear(rows_of(0, 32), codes, scale).shape == (0, 64)
