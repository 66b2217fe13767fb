"""Attention over the paged pool: writes this pass's keys and values, then reads each request's context as views.

The context is read in pieces of `PIECE` logical places. A piece whose blocks lie side by side is a view of the pool;
only a scattered one is gathered. The allocator prefers neighbours, so that copies are rare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.batch import ForwardBatch, Row, make_batch
from paceline.cache.pool import SPARE_SLOTS, Pool
from paceline.kernels import PIECE, Sight, attend_rows, heads, latent, mla


class Wanted(NamedTuple):
    """Those rows of a pass whose outputs are read: which they are [T' < T], and a pass over them alone."""

    rows: Tensor
    batch: ForwardBatch

    @staticmethod
    def of(
        rows: Sequence[Row], counts: Sequence[int], block_size: int, first: int, device: torch.device
    ) -> Wanted | None:
        """counts: how many outputs of each request, the last ones. None where that is all. Else as `make_batch`."""
        lengths = [len(row.tokens) for row in rows]
        if counts == lengths:
            return None
        tails = [
            row._replace(tokens=row.tokens[-count:], place=row.place + length - count)
            for row, length, count in zip(rows, lengths, counts, strict=True)
        ]
        ends = accumulate(lengths)
        index = [i for end, count in zip(ends, counts, strict=True) for i in range(end - count, end)]
        return Wanted(torch.tensor(index, device=device), make_batch(tails, block_size, first=first, device=device))


@dataclass(frozen=True)
class Reach:
    """What the rows start..end of one request attend to: its context's slots in pieces, and what each row sees."""

    start: int
    end: int
    pieces: list[slice | Tensor]
    sight: Sight


class PagedAttend:
    """`Attend` for one pass over `batch`; made once a pass, called once a layer."""

    absorbed = True

    def __init__(self, pool: Pool, batch: ForwardBatch, wanted: Wanted | None = None, window: int = 0) -> None:
        """wanted: compiled layers may leave out the outputs of all others. window: how many places a row sees at most,
        its own included; 0: all. It is for drafts only, and for compiled layers: others see all."""
        self.pool, self.batch, self.wanted, self.window = pool, batch, wanted, window
        self._tables: latent.Tables | None = None
        self._all_layers: mla.Pass | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        pool, batch = self.pool, self.batch
        pool.write(layer, batch.slots, k, v)
        keys, values = pool.k[layer], pool.v[layer]
        kept = heads.Kept(keys, pool.shared[layer], values)
        if batch.tree is None and pool.spec.latent and latent.attends_latent(q, pool.spec.v_dim):
            return latent.attend_latent(q, keys, self.tables, pool.spec.v_dim, pool.block_size, scale)
        if batch.tree is None and not pool.spec.latent and heads.attends_heads(q, kept):
            return heads.attend_heads(q, kept, self.tables, pool.block_size, scale)
        outs = [
            attend_rows(
                q[r.start : r.end],
                [pool.keys(layer, p) for p in r.pieces],
                [values[p] for p in r.pieces],
                r.sight,
                scale,
            )
            for r in self.reaches
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def paged(self, layer: int) -> mla.Paged | None:
        pool, batch = self.pool, self.batch
        if not pool.spec.shared or batch.tree is not None:
            return None
        return mla.Paged(pool.memory[layer], self.all_layers)

    @property
    def all_layers(self) -> mla.Pass:
        if self._all_layers is None:
            chosen = () if self.wanted is None else self._only(self.wanted)
            sizes = self.pool.block_size, self.pool.rooms, self.window
            self._all_layers = mla.Pass(self.batch.slots, self.tables, *sizes, *chosen)
        return self._all_layers

    def _only(self, wanted: Wanted) -> tuple[mla.Pass, Tensor]:
        return PagedAttend(self.pool, wanted.batch, None, self.window).all_layers, wanted.rows

    @property
    def tables(self) -> latent.Tables:
        if self._tables is None:
            self._tables = latent.Tables.of(self.batch.tables, self.batch.starts, self.batch.context)
        return self._tables

    @cached_property
    def reaches(self) -> list[Reach]:
        return [reach_of(self.batch, r, self.pool.block_size) for r in range(len(self.batch.context))]


def reach_of(batch: ForwardBatch, r: int, block_size: int) -> Reach:
    """Of request r. The width is rounded up, so that softmax sums rows of any pass in the same order."""
    start, end, context = batch.starts[r], batch.starts[r + 1], batch.context[r]
    device, tree = batch.slots.device, batch.tree
    width = -(-(context + end - start) // SPARE_SLOTS) * SPARE_SLOTS
    ancestors = None if tree is None else tree[start:end]
    sight = Sight(end - start, width, context, batch.first[r], device, ancestors)
    return Reach(start, end, pieces_of(batch.blocks[r], context + end - start, width, block_size, device), sight)


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
