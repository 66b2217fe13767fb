"""Stored tensors to numbers a model computes with: the one place where a checkpoint's dtype is interpreted."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.checkpoint.reader import DTYPES, Checkpoint
from paceline.errors import UserError
from paceline.formats import BLOCK, FP8, INT8, Format, format_of, widen

SLAB = 1 << 24  # numbers that are quantised at a time
SCALE = FP8.suffix  # `X.weight` of FP8 has its scales in `X.weight_scale_inv`


def read_weight(checkpoint: Checkpoint, name: str) -> Tensor:
    """The tensor `name` as floating-point numbers: codes with their scales become float32, the rest is as stored.

    Raises UserError for packed integers, and for codes without scales of the right shape."""
    stored = checkpoint[name].dtype
    dtype = DTYPES.get(stored)
    if dtype == INT8.dtype:
        return INT8.dequantise(*read_codes(checkpoint, name, INT8))
    if dtype is None or not dtype.is_floating_point:
        raise UserError(
            f"Tensor {name} has the unsupported type {stored}: use weights in BF16, FP8 or INT8 with scales."
        )
    if dtype.itemsize > 1:
        return checkpoint.tensor(name)
    return dequantise(*read_codes(checkpoint, name, FP8))


def read_codes(checkpoint: Checkpoint, name: str, form: Format) -> tuple[Tensor, Tensor]:
    """A tensor and its scales as they are stored. Raises UserError for scales that are missing, misshapen or not
    finite."""
    scales, shape = name + form.suffix, checkpoint[name].shape
    if scales not in checkpoint:
        raise UserError(f"{form.name.upper()} tensor {name} comes without {scales}: use weights with their scales.")
    info = checkpoint[scales]
    if len(shape) != 2 or info.shape != form.stored_scale_shape(*shape):
        what = "output" if form.group is None else f"{BLOCK}x{BLOCK} block"
        raise UserError(f"{scales} does not hold one scale for each {what}: use other weights.")
    scale = checkpoint.tensor(scales)
    if not scale.is_floating_point() or not scale.float().isfinite().all():
        raise UserError(f"{scales} holds scales that are no finite numbers: use other weights.")
    return checkpoint.tensor(name), scale


def read_as(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The tensor `name` for a parameter of this dtype: numbers and None; or codes, as stored or quantised now, and
    their scales by row. Raises UserError as `read_weight`, and for what cannot be quantised."""
    form = format_of(dtype)
    if form is None:
        return read_weight(checkpoint, name), None
    if DTYPES.get(checkpoint[name].dtype) == dtype:
        codes, scale = read_codes(checkpoint, name, form)
    else:
        codes, scale = quantised(read_weight(checkpoint, name), form, name)
    return codes, form.spread(scale, len(codes))


def quantised(weight: Tensor, form: Format, name: str) -> tuple[Tensor, Tensor]:
    """Codes and scales as a file holds them. Raises UserError that tells `name` for numbers that are not finite.

    By slabs of whole rows of blocks: what is in float32 on the way is small beside the weight."""
    rows = max(1, SLAB // weight.shape[1] // BLOCK) * BLOCK
    parts = [form.quantise(slab) for slab in weight.split(rows)]
    codes, scale = (torch.cat(part) for part in zip(*parts, strict=True))
    if not scale.isfinite().all():
        raise UserError(f"Tensor {name} holds numbers that are not finite and cannot be quantised: use other weights.")
    return codes, scale


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """weight [M, N] times its block's scale [ceil(M/128), ceil(N/128)], in float32; edge blocks may be partial.

    Source: DeepSeek-V3's public `weight_dequant` (the scale is a factor, in spite of the name `scale_inv`)."""
    numbers, factor = widen(weight)
    spread = (scale.float() * factor).repeat_interleave(BLOCK, 1)[:, : weight.shape[1]]
    for row, slab in zip(spread, numbers.split(BLOCK), strict=True):
        slab.mul_(row)
    return numbers
