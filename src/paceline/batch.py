"""One pass of a model as tensors: it can be padded, copied and replayed without knowing what is in it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor


class ForwardBatch(NamedTuple):
    """Tensors of one pass over R requests and T tokens.

    tokens [T] int64; positions [T] int64: the rotary place; slots [T] int64: where each token's KV goes in the pool
    (slot of logical place p of a request is `blocks[p // block_size] * block_size + p % block_size`).
    starts: R+1 query offsets (host); context: R counts of logical places before the first query of each request (host).
    blocks: R block tables (host lists). first: R logical places (host); those below hold nothing and are never
    attended (0 for a target, d or later for MTP depth d). tables: int64, one behind the other, starts, context,
    first, where each request's block table begins in the last part, and that part, all block tables. tree [T] int64
    ancestor masks, or None when all requests are chains: a row sees all the context and, of its own request's rows
    in this pass, those rows j up to itself whose bit j is set (its ancestors and itself); -1 is a row of a chain.
    take [L] int64: rows whose logits are wanted.

    Example: block_size 4, one request with blocks [7, 2], 3 places cached, 2 new tokens: context [3], starts [0, 2],
    slots [7*4+3, 2*4+0].
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    starts: list[int]
    context: list[int]
    blocks: list[list[int]]
    take: Tensor
    first: list[int]
    tables: Tensor
    tree: Tensor | None = None


class Row(NamedTuple):
    """One request in a pass: `tokens` at the logical places from `place` on, in the slots of `blocks`. first: the first
    place that they see, where that is later than the batch's."""

    tokens: list[int]
    place: int
    blocks: list[int]
    first: int = 0


def make_batch(
    rows: Sequence[Row],
    block_size: int,
    *,
    first: int = 0,
    take: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> ForwardBatch:
    """A batch of chains, one for each row. A token's rotary position is its place less `first`, and it sees no place
    below `first`.

    take: which of the T tokens' logits are wanted; None: those of each row's last token.

    Example: block_size 4, Row([5, 6], 3, [7, 2]), first 1: slots [31, 8], positions [2, 3], take [1].
    """
    # One flat buffer becomes one tensor: a device gets all of it in one copy.
    tokens, slots, positions, starts = array("q"), array("q"), array("q"), [0]
    for row in rows:
        end = row.place + len(row.tokens)
        tokens.extend(row.tokens)
        _extend_by_slots(slots, row.blocks, row.place, end, block_size)
        positions.extend(range(row.place - first, end - first))
        starts.append(len(tokens))
    total = len(tokens)
    wanted = array("q", take if take is not None else [end - 1 for end in starts[1:]])
    context, seen, blocks = (
        [row.place for row in rows],
        [max(first, row.first) for row in rows],
        [row.blocks for row in rows],
    )
    tables = tables_of(starts, context, seen, blocks)
    columns = torch.frombuffer(tokens + slots + positions + wanted + tables, dtype=torch.int64)
    if device is not None:
        columns = columns.to(device, non_blocking=True)
    parts = columns.split_with_sizes((total, total, total, len(wanted), len(tables)))
    return ForwardBatch(
        tokens=parts[0],
        slots=parts[1],
        positions=parts[2],
        starts=starts,
        context=context,
        blocks=blocks,
        take=parts[3],
        first=seen,
        tables=parts[4],
    )


def tables_of(starts: list[int], context: list[int], first: list[int], blocks: list[list[int]]) -> array[int]:
    """`ForwardBatch.tables`."""
    offsets = accumulate(map(len, blocks[:-1]), initial=0) if blocks else ()
    return array("q", [*starts, *context, *first, *offsets, *chain.from_iterable(blocks)])


def _extend_by_slots(slots: array[int], blocks: list[int], place: int, end: int, block_size: int) -> None:
    """The slots of places place..end-1, a block at a time."""
    while place < end:
        index = place // block_size
        stop = min(end, (index + 1) * block_size)
        shift = (blocks[index] - index) * block_size
        slots.extend(range(place + shift, stop + shift))
        place = stop
