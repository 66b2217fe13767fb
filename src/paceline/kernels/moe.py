"""Gated MLPs, alone or as the experts of a mixture, in one call of `moe.c`; weights are laid out once for it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import native
from paceline.kernels.linear import BLOCK, pack_weight
from paceline.kernels.pages import Pages

SHARED_AT_LEAST = 1 << 16  # numbers of the weights read below which waking other threads costs more than they save


class PackedExperts(NamedTuple):
    """gate_up [A, width / 16, ..], 16 gates beside 16 ups, and down [A, hidden / 32, ..]: blocks as `pack_weight` has
    them, both of numbers or both of codes."""

    gate_up: Tensor
    down: Tensor


def pack_experts(
    gates: list[Tensor], ups: list[Tensor], downs: list[Tensor], pages: Pages, codes: bool = False
) -> PackedExperts | None:
    """The experts' weights, each [width, hidden], [width, hidden] and [hidden, width], as `gated_experts` reads them.
    None where the compiled call is not for them: only bf16 (or codes) on a CPU that multiplies it, widths of whole
    blocks."""
    (width, hidden), half = gates[0].shape, BLOCK // 2
    if not hasattr(native.library(), "gated_experts") or width % half or hidden % BLOCK:
        return None
    pairs = (
        torch.stack((gate.view(-1, half, hidden), up.view(-1, half, hidden)), dim=1).view(2 * width, hidden)
        for gate, up in zip(gates, ups, strict=True)
    )
    gate_up, down = _packed(pairs, len(downs), codes), _packed(downs, len(downs), codes)
    return None if gate_up is None or down is None else PackedExperts(pages.keep(gate_up), pages.keep(down))


def _packed(weights: Iterable[Tensor], count: int, codes: bool) -> Tensor | None:
    """All of them, one after the other."""
    made: Tensor | None = None
    for e, weight in enumerate(weights):
        if (packed := pack_weight(weight, codes)) is None:
            return None
        made = packed.new_empty(count, *packed.shape) if made is None else made
        made[e] = packed
    return made


def gated_experts(x: Tensor, shares: Tensor | None, chosen: int, packed: PackedExperts) -> Tensor:
    """x [T, hidden] to the sum over experts of down(silu(gate x) * up x * share) [T, hidden], in bf16. shares [T, E]
    float32, at most `chosen` of a row not 0: the first E experts' own; those behind them are everybody's, at 1. An
    expert that no row chose is not read; a row has the same bits among any others."""
    (everyone, blocks), experts = packed.gate_up.shape[:2], 0 if shares is None else shares.shape[1]
    (rows, hidden), width, codes = x.shape, blocks * BLOCK // 2, packed.down.dtype == torch.int8
    pairs = rows * (chosen + everyone - experts)
    x = x.clone(memory_format=torch.contiguous_format) if codes else x.contiguous()  # rows become codes where they lie
    out = torch.empty_like(x)
    sizes = (4 * rows * hidden, 2 * pairs * width, 4 * (everyone + 1 + pairs))  # bytes: sums, inner numbers, who chose
    scratch = torch.empty(sum(sizes), dtype=torch.uint8)
    sums, inner, numbers = accumulate((scratch.data_ptr(), *sizes[:2]))
    threads = torch.get_num_threads() if min(pairs, everyone) * 3 * width * hidden >= SHARED_AT_LEAST else 1
    native.call(
        "gated_experts", x.data_ptr(), None if shares is None else shares.data_ptr(), packed.gate_up.data_ptr(),
        packed.down.data_ptr(), out.data_ptr(), inner, sums, numbers,
        rows, hidden, width, experts, everyone, codes, threads,
    )  # fmt: skip
    return out
