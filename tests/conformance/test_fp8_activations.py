"""FP8 times FP8, activations quantised by row and 128 inputs: the arithmetic against float64 and its error bound, what
is handed to torch's scaled product, and on a GPU that product itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paceline.checkpoint.quantization import announce, chosen_format, stored_format
from paceline.formats import BLOCK, FP8, FP8_MOST, quantise_activations, spread_rows
from paceline.kernels import fp8, quantised_linear, reference

hopper = pytest.mark.skipif(
    not (torch.cuda.is_available() and fp8.multiplies(torch.device("cuda"))),
    reason="no CUDA device on which torch multiplies blocks of FP8 (capability 9, CUDA 12.9)",
)
either = pytest.mark.parametrize("powers", [False, True], ids=["any scale", "powers of two"])


def rows_of(rows: int, inputs: int, seed: int = 0) -> Tensor:
    """Groups of very different sizes, and one of zeros."""
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))
    x = x * torch.logspace(-6, 4, inputs // BLOCK).repeat_interleave(BLOCK)
    x[0, :BLOCK] = 0
    return x.to(torch.bfloat16)


def weight_of(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    codes, scale = FP8.quantise(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)))
    return codes, spread_rows(scale, outputs)


@either
def test_a_group_fills_the_format(powers: bool) -> None:
    x = rows_of(9, 640)
    codes, scale = quantise_activations(x, powers)
    assert codes.dtype == torch.float8_e4m3fn and codes.shape == x.shape and scale.shape == (9, 5)
    most = codes.float().abs().unflatten(1, (-1, BLOCK)).amax(-1).flatten()[1:]
    assert bool((most >= FP8_MOST / 2 if powers else most == FP8_MOST).all()) and bool((most <= FP8_MOST).all())
    assert not powers or torch.equal(torch.frexp(scale)[0], torch.full_like(scale, 0.5))


@given(st.integers(-100, 100), st.booleans())
def test_a_power_of_two_is_the_least_that_is_enough(exponent: int, exact: bool) -> None:
    """Also where amax / 448 is such a power already."""
    x = torch.full((1, BLOCK), FP8_MOST * 2.0**exponent * (1 if exact else 1.01))
    _, scale = quantise_activations(x, powers=True)
    assert scale.item() == 2.0 ** (exponent if exact else exponent + 1)


@either
def test_the_error_is_within_the_formats_own(powers: bool) -> None:
    """A code is off by at most 2^-4 of its number, or half the smallest step, 2^-10, in units of its scale."""
    x, (codes, scale) = rows_of(20, 640).float(), weight_of(48, 640)
    weight = FP8.dequantise(codes, scale).double()
    found = reference.activations_too(x, codes, scale, None, powers).double()
    smallest = quantise_activations(x, powers)[1].repeat_interleave(BLOCK, 1).double() * 2**-10
    allowed = torch.maximum(x.double().abs() * 2**-4, smallest) @ weight.abs().T
    off = (found - x.double() @ weight.T).abs()
    assert bool((off <= allowed * 1.001).all())
    assert bool((off > 0).any()), "nothing was quantised"


@either
def test_what_the_codes_hold_exactly_is_multiplied_exactly(powers: bool) -> None:
    whole = torch.randint(-8, 9, (6, 256), generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    whole[:, ::BLOCK] = FP8_MOST  # so that every scale is 1
    codes, scale = weight_of(32, 256)
    found = reference.activations_too(whole, codes, scale, None, powers)
    exact = (whole.double() @ FP8.dequantise(codes, scale).double().T).to(torch.bfloat16)
    torch.testing.assert_close(found, exact, rtol=2**-7, atol=0)


def test_a_cpu_keeps_activations_as_they_are() -> None:
    x, (codes, scale) = rows_of(5, 256), weight_of(32, 256)
    assert not fp8.serves(x, codes)
    exact = F.linear(x, FP8.dequantise(codes, scale).to(x.dtype))
    for powers in (False, True):
        assert torch.equal(quantised_linear(x, codes, scale, powers=powers), exact)


def scaled_mm_by_the_book(
    a: Tensor, b: Tensor, scale_a: Tensor, way_a: object, scale_b: Tensor, way_b: object, *, output_dtype: torch.dtype
) -> Tensor:
    """torch's scaled product as documented, with all that it demands of 1x128 scales (ScaledBlas.cpp)."""
    assert way_a == way_b == F.ScalingType.BlockWise1x128
    assert a.dtype == b.dtype == torch.float8_e4m3fn and scale_a.dtype == scale_b.dtype == torch.float32
    assert a.is_contiguous() and b.t().is_contiguous(), "a row-major, b column-major"
    (m, k), n = a.shape, b.shape[1]
    assert k % 16 == 0 and n % 16 == 0 and m % 4 == 0
    for scale, rows in ((scale_a, m), (scale_b, n)):
        assert scale.shape == (rows, -(-k // BLOCK)) and scale.stride(0) == 1
        assert scale.stride(1) == rows or (scale.shape[1] == 1 and scale.stride(1) == 1)
    product = F.linear(FP8.dequantise(a, scale_a.contiguous()), FP8.dequantise(b.t(), scale_b.contiguous()))
    return product.to(output_dtype)


@either
@pytest.mark.parametrize("inputs", [128, 384])
@pytest.mark.parametrize("rows", [1, 3, 128, 300])
def test_torch_gets_what_it_demands(rows: int, inputs: int, powers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a merged weight, too, whose rows begin within a block of scales."""
    monkeypatch.setattr(F, "scaled_mm", scaled_mm_by_the_book)
    x, (codes, scale) = rows_of(rows, inputs), weight_of(240, inputs)
    codes, scale, bias = codes[48:], scale[48:], torch.randn(192).to(torch.bfloat16)
    found = fp8.linear(x, codes, scale, bias, powers)
    torch.testing.assert_close(found, reference.activations_too(x, codes, scale, bias, powers), rtol=2**-7, atol=1e-3)


def unscaled(*arguments: Any, **options: Any) -> Tensor:
    return scaled_mm_by_the_book(*arguments, **options) * 2


def too_old(*_: Any, **__: Any) -> Tensor:
    raise NotImplementedError("scaling by blocks requires a newer library")


@pytest.mark.parametrize(("product", "expected"), [(scaled_mm_by_the_book, True), (unscaled, False), (too_old, False)])
def test_a_device_is_believed_when_it_has_multiplied(
    product: Callable[..., Tensor], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "scaled_mm", product)
    assert fp8.multiplies.__wrapped__(torch.device("cpu")) is expected


@pytest.mark.parametrize(
    ("said", "device", "asked", "expected"),
    [
        ("ue8m0", "cuda", None, True),
        (None, "cuda", None, False),
        ("ue8m0", "cuda", "fp8", True),
        ("ue8m0", "cpu", "fp8", True),
        ("ue8m0", "cpu", None, None),
        ("ue8m0", "cuda", "int8", False),
    ],
)
def test_powers_of_two_where_the_checkpoint_says_so(
    said: str | None, device: str, asked: str | None, expected: bool | None
) -> None:
    raw = {"quantization_config": announce(FP8, []) | ({"scale_fmt": said} if said else {})}
    form = chosen_format(asked, raw, device)
    assert (form.powers if form else None) is expected
    assert stored_format(raw) is FP8


@pytest.mark.gpu
@hopper
@either
def test_the_gpus_product_is_the_references(powers: bool) -> None:
    x, (codes, scale) = rows_of(300, 640), weight_of(512, 640)
    assert fp8.serves(x.cuda(), codes.cuda())
    found = quantised_linear(x.cuda(), codes.cuda(), scale.cuda(), powers=powers).cpu()
    expected = reference.activations_too(x, codes, scale, None, powers)
    # The tensor cores keep fewer bits than float32 while they add.
    torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6 * float(expected.abs().max()))


@pytest.mark.gpu
@hopper
def test_on_a_gpu_a_row_is_its_own() -> None:
    x, (codes, scale) = rows_of(600, 640).cuda(), weight_of(2048, 640)
    codes, scale = codes.cuda(), scale.cuda()
    whole = quantised_linear(x, codes, scale)
    for step in (1, 5, 127, 200):
        parts = [quantised_linear(part, codes, scale) for part in x.split(step)]
        assert torch.equal(torch.cat(parts), whole), step
