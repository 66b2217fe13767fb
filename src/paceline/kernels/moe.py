"""Gated MLPs, alone or as the experts of a mixture, in one call of `moe.c`; weights are laid out once for it."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import native
from paceline.kernels.linear import BLOCK, pack_weight
from paceline.kernels.pages import Pages

SHARED_AT_LEAST = 1 << 16  # numbers of the weights read below which waking other threads costs more than they save


class PackedExperts(NamedTuple):
    """gate_up [A, width / 16, hidden / 2, 32, 2], 16 gates beside 16 ups; down [A, hidden / 32, width / 2, 32, 2]."""

    gate_up: Tensor
    down: Tensor


def pack_experts(gates: list[Tensor], ups: list[Tensor], downs: list[Tensor], pages: Pages) -> PackedExperts | None:
    """The experts' weights, each [width, hidden], [width, hidden] and [hidden, width], as `gated_experts` reads them.
    None where the compiled call is not for them: only bf16 on a CPU that multiplies it, widths of whole blocks."""
    (width, hidden), half = gates[0].shape, BLOCK // 2
    here = all(w.is_cpu and w.dtype == torch.bfloat16 for w in (*gates, *ups, *downs))
    if not here or not hasattr(native.library(), "gated_experts") or width % half or hidden % BLOCK:
        return None
    gate_up = torch.empty(len(gates), width // half, hidden // 2, BLOCK, 2, dtype=torch.bfloat16)
    down = torch.empty(len(gates), hidden // BLOCK, width // 2, BLOCK, 2, dtype=torch.bfloat16)
    for e, (gate, up, back) in enumerate(zip(gates, ups, downs, strict=True)):
        pairs = torch.stack((gate.view(-1, half, hidden), up.view(-1, half, hidden)), dim=1)
        for to, weight in ((gate_up[e], pairs.view(2 * width, hidden)), (down[e], back)):
            packed = pack_weight(weight)
            assert packed is not None
            to.copy_(packed)
    return PackedExperts(pages.keep(gate_up), pages.keep(down))


def gated_experts(x: Tensor, shares: Tensor | None, chosen: int, packed: PackedExperts) -> Tensor:
    """x [T, hidden] to the sum over experts of down(silu(gate x) * up x * share) [T, hidden], in bf16. shares [T, E]
    float32, at most `chosen` of a row not 0: the first E experts' own; those behind them are everybody's, at 1. An
    expert that no row chose is not read; a row has the same bits among any others."""
    (everyone, blocks, half_hidden), experts = packed.gate_up.shape[:3], 0 if shares is None else shares.shape[1]
    rows, hidden, width = len(x), 2 * half_hidden, blocks * BLOCK // 2
    pairs = rows * (chosen + everyone - experts)
    x, out = x.contiguous(), torch.empty(rows, hidden, dtype=x.dtype)
    sizes = (4 * rows * hidden, 2 * pairs * width, 4 * (everyone + 1 + pairs))  # bytes: sums, inner numbers, who chose
    scratch = torch.empty(sum(sizes), dtype=torch.uint8)
    sums, inner, numbers = accumulate((scratch.data_ptr(), *sizes[:2]))
    threads = torch.get_num_threads() if min(pairs, everyone) * 3 * width * hidden >= SHARED_AT_LEAST else 1
    native.call(
        "gated_experts", x.data_ptr(), None if shares is None else shares.data_ptr(), packed.gate_up.data_ptr(),
        packed.down.data_ptr(), out.data_ptr(), inner, sums, numbers,
        rows, hidden, width, experts, everyone, threads,
    )  # fmt: skip
    return out
