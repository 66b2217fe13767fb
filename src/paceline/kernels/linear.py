"""Products of bf16 rows with a weight that is laid out once: by `linear.c`, or by oneDNN where that does not serve."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.kernels import native

# oneDNN sums a single bf16 row of more inputs in another order than two rows; measured above 1536.
LONG_SUM = 1024
BLOCK = 32  # outputs; as in linear.c
SHARED_AT_LEAST = 1 << 16  # numbers of a weight below which waking other threads costs more than they save


def pack_weight(weight: Tensor) -> Tensor | None:
    """The weight [out, in] as `packed_linear` reads it: [out / 32, in / 2, 32, 2], or in oneDNN's own layout. None
    where neither applies (only bf16 on the CPU gains)."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return None
    outputs, inputs = weight.shape
    if hasattr(native.library(), "bf16_linear") and outputs % BLOCK == 0 and inputs % 2 == 0:
        pairs = weight.detach().contiguous().view(torch.int32).view(outputs // BLOCK, BLOCK, inputs // 2)
        return pairs.transpose(1, 2).contiguous().view(weight.dtype).view(outputs // BLOCK, inputs // 2, BLOCK, 2)
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
    return packed


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
    out = torch.empty(rows, outputs, dtype=x.dtype)
    added = None if bias is None else bias.data_ptr()
    threads = torch.get_num_threads() if packed.numel() >= SHARED_AT_LEAST else 1
    pointers = (x.data_ptr(), packed.data_ptr(), added, out.data_ptr())
    native.call("bf16_linear", *pointers, rows, inputs, outputs, threads)
    return out
