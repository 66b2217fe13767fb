"""One pass of a model as tensors: it can be padded, copied and replayed without knowing what is in it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ForwardBatch:
    """Tensors of one pass over R requests and T tokens.

    tokens [T] int64; positions [T] int64: the rotary place; slots [T] int64: where each token's KV goes in the pool
    (slot of logical place p of a request is `blocks[p // block_size] * block_size + p % block_size`).
    starts: R+1 query offsets (host); context: R counts of logical places before the first query of each request (host).
    blocks: R block tables (host lists). `first`: logical places below it hold nothing and are never attended (0 for a target,
    d for MTP depth d). tree [T] int64 ancestor masks, or None when every request is a chain. take [L] int64: rows whose
    logits are wanted.

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
    first: int = 0
    tree: Tensor | None = None
