"""Two ways to keep a weight in one byte a number, as arithmetic on tensors; they know no module and no file.

int8: a whole number from -127 to 127 times one scale an output (weight-only, symmetric). fp8: float8 e4m3 times one
scale for each block of 128 x 128, as DeepSeek-V3's checkpoints have it (technical report, section 3.3; the scale is a
factor, in spite of the name `weight_scale_inv`).

In memory a scale is kept for each row, [out, groups], so that rows of a weight may be views of a wider one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
INT8_MOST, FP8_MOST = 127.0, 448.0
_LARGEST = FP8_MOST / 256  # in float16's place; the one code above it is no number


@dataclass(frozen=True)
class Format:
    """suffix: a scale's name is its weight's and this. group: inputs that share a scale, None for all.

    quantise: weight [out, in] to codes and the scales as a file holds them. spread: those to the scales by row.
    dequantise: codes and scales by row to float32. powers: where activations are quantised, their scales are powers of
    two (DeepSeek-V3.1's `scale_fmt` ue8m0)."""

    name: str
    dtype: torch.dtype
    suffix: str
    group: int | None
    quantise: Callable[[Tensor], tuple[Tensor, Tensor]]
    spread: Callable[[Tensor, int], Tensor]
    dequantise: Callable[[Tensor, Tensor], Tensor]
    powers: bool = False

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """In memory."""
        return rows, 1 if self.group is None else -(-columns // self.group)

    def stored_scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """In a file."""
        by_row, groups = self.scale_shape(rows, columns)
        return by_row if self.group is None else -(-rows // self.group), groups


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [out, in] to int8 [out, in] and scale [out, 1] float32, of bf16 numbers: every kernel may take them so."""
    weight = weight.to(torch.float32)
    scale = _never_zero((weight.abs().amax(1, keepdim=True) / INT8_MOST).to(torch.bfloat16).to(torch.float32))
    return (weight / scale).round_().clamp_(-INT8_MOST, INT8_MOST).to(torch.int8), scale


def dequantise_int8(weight: Tensor, scale: Tensor) -> Tensor:
    return weight.to(torch.float32) * scale


def quantise_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [out, in] to float8 e4m3 [out, in] and scale [ceil(out / 128), ceil(in / 128)] float32; a block's largest
    number becomes 448, the format's own."""
    weight = weight.to(torch.float32)
    rows, columns = weight.shape
    padded = F.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK)).abs()
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scale = _never_zero(blocks.amax((1, 3)) / FP8_MOST)
    codes = weight / by_column(spread_rows(scale, rows), columns)
    return codes.clamp_(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn), scale


def quantise_activations(x: Tensor, powers: bool) -> tuple[Tensor, Tensor]:
    """x [rows, in], whole groups of 128 inputs, to float8 e4m3 [rows, in] and scale [rows, in / 128] float32: the
    largest number of a group becomes 448, or with `powers` at most that, the scale being a power of two.

    Source: DeepSeek-V3's public `act_quant`."""
    groups = x.to(torch.float32).unflatten(-1, (-1, BLOCK))
    scale = _never_zero(groups.abs().amax(-1) / FP8_MOST)
    if powers:
        mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2^exponent, mantissa from 0.5 on
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))
    codes = (groups / scale[..., None]).clamp_(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn)
    return codes.flatten(-2), scale


def dequantise_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """weight [out, in] float8, scale [out, ceil(in / 128)] to float32."""
    numbers, factor = widen(weight)
    return numbers.mul_(by_column(scale * factor, weight.shape[1]))


def widen(weight: Tensor) -> tuple[Tensor, float]:
    """float32 and a power of two whose product is `weight`, exactly. A new tensor.

    The bits of e4m3 (sign, 4 of exponent with bias 7, 3 of mantissa) are those of a float16 2^-8 as large, once
    exponent and mantissa move up by 7: fifteen times as fast on a CPU as torch's own conversion."""
    if weight.dtype != torch.float8_e4m3fn:
        return weight.to(torch.float32, copy=True), 1.0
    bits = weight.view(torch.int8).to(torch.int16)  # the sign runs through the upper byte, and one bit too far
    numbers = bits.bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16).to(torch.float32)
    if numbers.numel() and max(map(abs, numbers.aminmax())) > _LARGEST:
        numbers.masked_fill_(numbers.abs() > _LARGEST, float("nan"))
    return numbers, 256.0


def spread_rows(scale: Tensor, rows: int) -> Tensor:
    """Scales by block [ceil(rows / 128), n] to scales by row [rows, n]; the last block may be partial."""
    return scale.to(torch.float32).repeat_interleave(BLOCK, 0)[:rows]


def by_column(scale: Tensor, columns: int) -> Tensor:
    """[rows, ceil(columns / 128)] to [rows, columns]."""
    return scale.repeat_interleave(BLOCK, 1)[:, :columns]


def _never_zero(scale: Tensor) -> Tensor:
    """A block of zeros has any scale."""
    return scale.masked_fill(scale == 0, 1.0)


def _by_row_already(scale: Tensor, rows: int) -> Tensor:
    return scale.to(torch.float32)


INT8 = Format("int8", torch.int8, "_scale", None, quantise_int8, _by_row_already, dequantise_int8)
FP8 = Format("fp8", torch.float8_e4m3fn, "_scale_inv", BLOCK, quantise_fp8, spread_rows, dequantise_fp8)
FORMATS = {form.name: form for form in (INT8, FP8)}
SCALES = tuple("weight" + form.suffix for form in FORMATS.values())  # how their names end


def format_of(dtype: torch.dtype) -> Format | None:
    """The format whose codes have this dtype; None for plain numbers."""
    return next((form for form in FORMATS.values() if form.dtype == dtype), None)


def owner(name: str) -> str:
    """The tensor that a scale of this name belongs to; any other tensor belongs to itself.

    Example: `a.weight_scale_inv` belongs to `a.weight`."""
    return name[: name.rindex("weight") + len("weight")] if name.endswith(SCALES) else name
