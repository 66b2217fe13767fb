"""Attention over keys and values of several heads, for a whole batch in one call of `heads.c`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import native
from paceline.kernels.latent import SHARED_AT_LEAST, Tables

FEW_ROWS, MANY_ROWS = 4, 16  # of a request in a tile: of those that a step verifies, of a prompt
STEP, PLACES, FETCHED = 32, 16, 32  # numbers in a vector, places in one, slots behind the last place; as in heads.c


class Kept(NamedTuple):
    """What a layer keeps, all views of slots that lie a stride apart: keys [slots, Hkv, own], the rest of every head's
    key [slots, rest], which heads share (or 0 numbers), values [slots, Hkv, v_dim]."""

    keys: Tensor
    shared: Tensor
    values: Tensor


def attend_heads(q: Tensor, kept: Kept, tables: Tables, block_size: int, scale: float, window: int = 0) -> Tensor:
    """Attention of all requests: q [T, H, own + rest] to [T, H, v_dim]. Row by row what `reference.attend_rows` says
    for a chain, on as many threads as torch has."""
    (rows, heads, _), (_, kv_heads, own), v_dim = q.shape, kept.keys.shape, kept.values.shape[2]
    q, out = q.contiguous(), torch.empty(rows, heads, v_dim, dtype=q.dtype)
    threads, tile, scratch = shared_work(tables, rows, heads)
    pointers = (
        q,
        kept.keys,
        kept.keys if kept.shared is None else kept.shared,
        kept.values,
        out,
        tables.numbers,
        scratch,
    )
    strides = (kept.keys.stride(0), kept.values.stride(0))
    native.call(
        "attend_heads", *(x.data_ptr() for x in pointers), len(tables.context), heads, kv_heads, q.stride(0), own,
        kept.shared.shape[1], v_dim, *strides, block_size, tables.longest, window, scale, tile, threads,
    )  # fmt: skip
    return out


def shared_work(tables: Tables, rows: int, heads: int) -> tuple[int, int, Tensor]:
    """Threads, rows in a tile, and scratch for each thread."""
    threads = torch.get_num_threads() if tables.work * heads >= 4 * SHARED_AT_LEAST else 1
    scratch = torch.empty(scratch_bytes(tables.longest, threads), dtype=torch.uint8)
    return threads, rows_in_tile(tables, rows), scratch


def rows_in_tile(tables: Tables, rows: int) -> int:
    """Rows of a request that share what they read, but leave work for every thread."""
    return MANY_ROWS if rows >= MANY_ROWS * len(tables.context) else FEW_ROWS


def scratch_bytes(longest: int, threads: int) -> int:
    """For the most places that a row may see."""
    return 4 * threads * (4 * (longest + FETCHED) + 16 * (longest + PLACES))


def attends_heads(q: Tensor, kept: Kept) -> bool:
    """Whether `attend_heads` is for these queries [T, H, own + rest]: whole vectors."""
    widths = (kept.keys.shape[2], q.shape[2], kept.values.shape[2])
    return not any(width % STEP for width in widths) and native.serves(q)
