"""Attention over latents (MLA, absorbed) for a whole batch in one call of `latent.c`."""

from __future__ import annotations

from itertools import pairwise
from operator import add, mul
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import native

MOST_HEADS = 16
MOST_ROWS = 4  # of a request in a tile; as in latent.c
FETCHED = 24  # pointers behind the last place; as in latent.c
SHARED_AT_LEAST = 400  # rows times places below which waking other threads costs more than they save


class Tables(NamedTuple):
    """Where each request's rows and blocks are: the same for all layers of a pass. numbers: as `ForwardBatch.tables`;
    longest: places that a row may see; work: rows times places, of all requests."""

    numbers: Tensor
    starts: list[int]
    context: list[int]
    longest: int
    work: int

    @staticmethod
    def of(numbers: Tensor, starts: list[int], context: list[int]) -> Tables:
        """numbers, starts and context as in a ForwardBatch."""
        rows = [end - start for start, end in pairwise(starts)]
        ends = list(map(add, context, rows))
        return Tables(numbers, starts, context, max(ends), sum(map(mul, rows, ends)))


def attend_latent(q: Tensor, keys: Tensor, tables: Tables, v_dim: int, block_size: int, scale: float) -> Tensor:
    """Attention of all requests over latents: q [T, H, k_dim], keys [slots, 1, k_dim], of which the first v_dim numbers
    are the value too; returns [T, H, v_dim]. Row by row what `reference.attend_rows` says for a chain, on as many
    threads as torch has."""
    requests, (rows, heads, k_dim), longest = len(tables.context), q.shape, tables.longest
    out = torch.empty(rows, heads, v_dim, dtype=q.dtype)
    threads, tile, scratch = shared_work(tables, rows, heads)
    numbers = tables.numbers.data_ptr()
    offsets = (0, requests + 1, 2 * requests + 1, 3 * requests + 1, 4 * requests + 1)
    pointers = (q.data_ptr(), keys.data_ptr(), out.data_ptr(), *(numbers + 8 * offset for offset in offsets))
    sizes = (requests, heads, q.stride(0), k_dim, v_dim, block_size, longest)
    native.call("attend_latent", *pointers, scratch.data_ptr(), *sizes, scale, tile, threads)
    return out


def shared_work(tables: Tables, rows: int, heads: int) -> tuple[int, int, Tensor]:
    """Threads, rows in a tile, which share what they read, but leave work for every thread, and scratch for each."""
    threads = torch.get_num_threads() if tables.work * heads >= 4 * SHARED_AT_LEAST else 1
    size = 2 * (tables.longest + FETCHED) + 4 * MOST_ROWS * (tables.longest + 4)
    return threads, max(1, min(MOST_ROWS, rows // threads)), torch.empty(threads, size, dtype=torch.float32)


def attends_latent(q: Tensor, v_dim: int) -> bool:
    """Whether `attend_latent` is for these queries [T, H, k_dim]: few heads, even dimensions."""
    heads, k_dim = q.shape[1:]
    even = heads % 4 == 0 and k_dim % 32 == 0 and v_dim % 64 == 0
    return even and heads <= MOST_HEADS and q.stride(1) == k_dim and native.serves(q)
