"""Attention over the paged pool: writes this pass's keys and values, then reads each request's context as views.

The context is read in pieces of `PIECE` logical places. A piece whose blocks lie side by side is a view of the pool;
only a scattered one is gathered. The allocator prefers neighbours, so that copies are rare.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from paceline.batch import ForwardBatch
from paceline.cache.pool import SPARE_SLOTS, Pool
from paceline.kernels import attend_rows_for
from paceline.kernels.cpu import PIECE


@dataclass(frozen=True)
class Reach:
    """What the rows start..end of one request may see: its context's slots in pieces, and what is hidden [m, W]."""

    start: int
    end: int
    pieces: list[slice | Tensor]
    hidden: Tensor


class PagedAttend:
    """`Attend` for one pass over `batch`; made once a pass, called once a layer."""

    absorbed = True

    def __init__(self, pool: Pool, batch: ForwardBatch) -> None:
        self.pool, self.slots = pool, batch.slots
        self.kernel = attend_rows_for(batch.slots.device)
        self.reaches = [reach_of(batch, r, pool.block_size) for r in range(len(batch.context))]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.pool.write(layer, self.slots, k, v)
        keys, values = self.pool.k[layer], self.pool.v[layer]
        outs = [
            self.kernel(q[r.start : r.end], [keys[p] for p in r.pieces], [values[p] for p in r.pieces], r.hidden, scale)
            for r in self.reaches
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def reach_of(batch: ForwardBatch, r: int, block_size: int) -> Reach:
    """Example: context 5, 2 rows, first 0: W = 64, row 0 sees places 0..5, row 1 sees 0..6, the rest is hidden."""
    start, end, context = batch.starts[r], batch.starts[r + 1], batch.context[r]
    device = batch.slots.device
    width = -(-(context + end - start) // SPARE_SLOTS) * SPARE_SLOTS
    # each column's place among this pass's rows; below 0: context
    node = torch.arange(-context, width - context, device=device)
    hidden = node > torch.arange(end - start, device=device)[:, None]
    if batch.tree is not None:
        ancestors = batch.tree[start:end, None] >> node.clamp(0, 62)
        hidden |= (node >= 0) & (node < 63) & ((ancestors & 1) == 0)
    if batch.first:
        # A row below `first` still sees itself: its output means nothing, but it must stay finite.
        own = torch.arange(end - start, device=device).clamp(max=batch.first - context)
        hidden |= node < own[:, None]
    return Reach(start, end, pieces_of(batch.blocks[r], context + end - start, width, block_size, device), hidden)


def pieces_of(
    blocks: list[int], length: int, width: int, block_size: int, device: torch.device
) -> list[slice | Tensor]:
    """The slots of places 0..width-1 (those from `length` on are hidden and may be any) in pieces of PIECE."""
    pieces: list[slice | Tensor] = []
    for begin in range(0, width, PIECE):
        end = min(begin + PIECE, width)
        used = blocks[begin // block_size : (min(end, length) - 1) // block_size + 1]
        if all(b - a == 1 for a, b in pairwise(used)):
            slot = used[0] * block_size + begin % block_size
            pieces.append(slice(slot, slot + end - begin))
        else:
            places = torch.arange(begin, end, device=device).clamp(max=length - 1)
            table = torch.tensor(blocks, device=device)
            pieces.append(table[places // block_size] * block_size + places % block_size)
    return pieces
