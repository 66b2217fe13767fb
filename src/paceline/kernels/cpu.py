"""Attention for the CPU: bf16 products on views of the pool, with the same bits for a row whatever runs beside it.

Why it is row-invariant: oneDNN's bf16 products give a row the same bits at any row count; more keys only add columns;
masked columns weigh exactly 0; and the product with the values runs over fixed pieces of the context (at most
`PIECE` keys: longer sums are blocked differently), added in order in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 512


def attend_rows(q: Tensor, keys: list[Tensor], values: list[Tensor], hidden: Tensor, scale: float) -> Tensor:
    """As `reference.attend_rows`; every piece but the last holds PIECE keys."""
    rows, heads, _ = q.shape
    kv_heads = keys[0].shape[1]
    q = (q * scale).view(rows, kv_heads, heads // kv_heads, -1)
    fold = _fold_one if kv_heads == 1 else _fold_many
    pieces = [fold(q, k.permute(1, 2, 0)) for k in keys]
    scores = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    probabilities = scores.masked_fill_(hidden[:, None, None], float("-inf")).softmax(-1)
    if len(values) == 1:
        out = fold(probabilities, values[0].transpose(0, 1))
    else:
        parts = probabilities.split(PIECE, dim=-1)
        total = fold(parts[0], values[0].transpose(0, 1)).to(torch.float32)
        for part, value in zip(parts[1:], values[1:], strict=True):
            total += fold(part, value.transpose(0, 1))
        out = total.to(q.dtype)
    return out.reshape(rows, heads, -1)


def _fold_one(x: Tensor, y: Tensor) -> Tensor:
    """x [m, 1, G, D] times y [1, D, N] to [m, 1, G, N]: one plain product."""
    return (x.flatten(0, 2) @ y[0]).view(*x.shape[:3], -1)


def _fold_many(x: Tensor, y: Tensor) -> Tensor:
    """x [m, Hkv, G, D] times y [Hkv, D, N] to [m, Hkv, G, N]: one product a key head."""
    rows, kv_heads, groups, _ = x.shape
    folded = x.transpose(0, 1).reshape(kv_heads, rows * groups, -1) @ y
    return folded.view(kv_heads, rows, groups, -1).transpose(0, 1)
