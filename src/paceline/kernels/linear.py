"""Products of bf16 rows with a weight that is laid out once: by `linear.c`, or by oneDNN where that does not serve.

A weight may be laid out as codes: whole numbers in one byte, by rows that become such numbers for the product. That is
half the bytes and twice the speed, and not the same numbers: it is for drafts, which need not be exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.formats import quantise_int8
from paceline.kernels import native

# oneDNN sums a single bf16 row of more inputs in another order than two rows; measured above 1536.
LONG_SUM = 1024
BLOCK = 32  # outputs; as in linear.c
CODES_AT_ONCE = 16  # of a row
MOST_CODES = 1 << 16  # of a row: 255 * 127 times as many is below 2^31
SHARED_AT_LEAST = 1 << 16  # numbers of a weight below which waking other threads costs more than they save


def pack_weight(weight: Tensor, codes: bool = False) -> Tensor | None:
    """The weight [out, in] as `packed_linear` reads it: [out / 32, in / 2, 32, 2], or in oneDNN's own layout; or as
    codes, see `pack_codes`. None where that does not apply (of numbers only bf16 on the CPU gains)."""
    if codes:
        return pack_codes(weight)
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return None
    outputs, inputs = weight.shape
    if hasattr(native.library(), "packed_linear") and outputs % BLOCK == 0 and inputs % 2 == 0:
        pairs = weight.detach().contiguous().view(torch.int32).view(outputs // BLOCK, BLOCK, inputs // 2)
        return pairs.transpose(1, 2).contiguous().view(weight.dtype).view(outputs // BLOCK, inputs // 2, BLOCK, 2)
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
    return packed


def pack_codes(weight: Tensor) -> Tensor | None:
    """The weight [out, in] in int8 [out / 32, 256 + 32 * in]: of 32 outputs -128 times the sum of each one's codes
    (int32), their scales (float32), and the codes [in / 4, 32, 4]. None where `linear.c` does not serve."""
    outputs, inputs = weight.shape
    whole = outputs % BLOCK == 0 and inputs % CODES_AT_ONCE == 0 and inputs <= MOST_CODES
    if not weight.is_cpu or not whole or not hasattr(native.library(), "packed_linear"):
        return None
    found, scale = quantise_int8(weight.detach())
    starts = found.sum(1, dtype=torch.int32).mul_(-128)
    columns = found.view(-1, BLOCK, inputs // 4, 4).transpose(1, 2)
    parts = (starts, scale.flatten(), columns.contiguous())
    return torch.cat([part.view(torch.int8).view(outputs // BLOCK, -1) for part in parts], dim=1)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of x [rows, in] on a weight from `pack_weight`; a row has the same bits among any others."""
    if not packed.is_mkldnn:
        return _linear(x.contiguous(), packed, bias)
    if x.shape[0] == 1 and x.shape[1] > LONG_SUM:
        return packed_linear(x.expand(2, -1).contiguous(), packed, bias)[:1]
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def _linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    (rows, inputs), outputs = x.shape, packed.shape[0] * BLOCK
    codes = packed.dtype == torch.int8
    x, out = x.clone() if codes else x, torch.empty(rows, outputs, dtype=x.dtype)  # rows become codes where they lie
    added = None if bias is None else bias.data_ptr()
    threads = torch.get_num_threads() if packed.numel() >= SHARED_AT_LEAST else 1
    pointers = (x.data_ptr(), packed.data_ptr(), added, out.data_ptr())
    native.call("packed_linear", *pointers, rows, inputs, outputs, codes, threads)
    return out
