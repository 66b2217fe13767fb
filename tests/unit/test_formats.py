"""Numbers to codes and back: how far off they may be, block by block, against the definition in plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.checkpoint import dequant
from paceline.formats import BLOCK, FORMATS, FP8, INT8, Format, by_column, format_of, owner, spread_rows, widen

SIZES = st.sampled_from([1, 2, 31, 127, 128, 129, 200, 300])


def draw(rows: int, columns: int, seed: int) -> Tensor:
    """Rows of very different sizes, a row and a column of zeros, one outlier."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    weight[rows // 2], weight[:, columns // 3] = 0, 0
    weight[0, 0] *= 30
    return weight.to(torch.bfloat16)


@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_int8_is_off_by_half_a_step_at_most(rows: int, columns: int, seed: int) -> None:
    weight = draw(rows, columns, seed)
    codes, scale = INT8.quantise(weight)
    assert codes.dtype == torch.int8 and scale.shape == (rows, 1) and codes.abs().max() <= 127
    assert torch.equal(scale, scale.bfloat16().float()) and (scale > 0).all()
    # the scale is a bf16 number: where it was rounded down the largest of a row may be cut by as much again
    error = (INT8.dequantise(codes, INT8.spread(scale, rows)) - weight.float()).abs()
    assert (error <= scale * (0.5 + 127 / 256) * 1.0001).all()
    assert (
        error[weight.float().abs() <= 126 * scale] <= (scale * 0.5001).expand_as(error)[weight.abs() <= 126 * scale]
    ).all()


@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_fp8_has_a_scale_for_each_block(rows: int, columns: int, seed: int) -> None:
    """Each block by itself: its largest number is 448 scales, and every number within a sixteenth of itself."""
    weight = draw(rows, columns, seed)
    codes, scale = FP8.quantise(weight)
    assert codes.dtype == torch.float8_e4m3fn and scale.shape == FP8.stored_scale_shape(rows, columns)
    found = FP8.dequantise(codes, FP8.spread(scale, rows))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
            numbers, factor = weight[block].float(), scale[i, j]
            if numbers.abs().max() > 0:
                assert codes[block].float().abs().max() == 448
                torch.testing.assert_close(factor, numbers.abs().max() / 448, rtol=1e-6, atol=0)
            assert torch.equal(found[block], codes[block].float() * factor)
            assert ((found[block] - numbers).abs() <= numbers.abs() / 16 * 1.0001 + factor * 2**-10).all()


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_codes_of_codes_are_the_same(form: Format) -> None:
    """What was quantised once may be quantised again: as a file, and at the next load from plain numbers."""
    weight = draw(200, 300, 3)
    codes, scale = form.quantise(weight)
    again, _ = form.quantise(form.dequantise(codes, form.spread(scale, 200)))
    assert (again.float() == codes.float()).float().mean() > 0.999


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_the_scale(form: Format, bad: float) -> None:
    weight = draw(130, 140, 0)
    weight[129, 139] = bad
    assert not form.quantise(weight)[1].isfinite().all()


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_slab_by_slab_is_all_at_once(form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = draw(400, 70, 1)
    monkeypatch.setattr(dequant, "SLAB", 1)
    for found, expected in zip(dequant.quantised(weight, form, "x"), form.quantise(weight), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found.float(), expected.float())


def test_every_fp8_code_widens_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    numbers, factor = widen(codes)
    torch.testing.assert_close(numbers * factor, codes.float(), rtol=0, atol=0, equal_nan=True)


def test_scales_spread_over_partial_blocks() -> None:
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rows = spread_rows(scale, 130)
    assert rows.shape == (130, 2) and rows[127, 0] == 1 and rows[128, 0] == 3
    columns = by_column(rows, 129)
    assert columns.shape == (130, 129) and columns[0, 127] == 1 and columns[0, 128] == 2 and columns[129, 128] == 4


def test_names_and_types() -> None:
    assert owner("a.weight_scale_inv") == owner("a.weight_scale") == owner("a.weight") == "a.weight"
    assert owner("mlp.gate.e_score_correction_bias") == "mlp.gate.e_score_correction_bias"
    assert format_of(torch.int8) is INT8 and format_of(torch.float8_e4m3fn) is FP8
    assert format_of(torch.bfloat16) is None
