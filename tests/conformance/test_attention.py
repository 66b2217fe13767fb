"""Attention on the paged pool against the plain definition: pieces, scattered blocks, heads, trees, empty slots."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.batch import Row, make_batch
from paceline.cache.attend import PagedAttend
from paceline.cache.pool import Pool
from paceline.kernels import Sight, attend_rows, reference
from paceline.layers.attention import CacheSpec

WIDTH, SCALE = 8, 0.4
# (query heads, key heads, latent)
HEADS = [(4, 4, False), (4, 2, False), (3, 1, True)]


def visible(parents: list[int], context: int, node: int, first: int) -> list[int]:
    """The places that a node sees: the context from `first` on, its ancestors and itself."""
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return [*range(first, context), *(context + j for j in reversed(path))]


def masks(parents: list[int]) -> list[int]:
    made: list[int] = []
    for node, parent in enumerate(parents):
        made.append(1 << node | (made[parent] if parent >= 0 else 0))
    return made


def attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One row: q [Hq, D], keys [w, Hkv, D], values [w, Hkv, Dv] to [Hq, Dv], head by head."""
    share = len(q) // keys.shape[1]
    heads = [((keys[:, h // share] @ q[h]) * SCALE).softmax(0) @ values[:, h // share] for h in range(len(q))]
    return torch.stack(heads)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_row_sees_its_context_and_its_ancestors(data: st.DataObject) -> None:
    heads, kv_heads, latent = data.draw(st.sampled_from(HEADS))
    size = data.draw(st.sampled_from([1, 4, 16, 600]), "block size")
    chain = data.draw(st.booleans(), "chain")
    contexts = data.draw(st.lists(st.sampled_from([0, 1, 5, 63, 64, 509, 512, 700]), min_size=1, max_size=2))
    trees = [
        [-1, *(n - 1 if chain else data.draw(st.integers(max(0, n - 3), n - 1)) for n in range(1, count))]
        for count in data.draw(st.lists(st.integers(1, 9), min_size=len(contexts), max_size=len(contexts)), "nodes")
    ]
    needs = [-(-(context + len(tree)) // size) for context, tree in zip(contexts, trees, strict=True)]
    blocks = list(range(sum(needs)))
    if data.draw(st.booleans(), "scattered"):
        random.Random(0).shuffle(blocks)
    tables = [[blocks.pop(0) for _ in range(need)] for need in needs]
    generator = torch.Generator().manual_seed(0)
    pool = Pool(CacheSpec(1, kv_heads, WIDTH, WIDTH // 2 if latent else WIDTH, latent), sum(needs), size, torch.float32)
    pool.k[0].normal_(generator=generator)
    pool.v[0].normal_(generator=generator)
    firsts = [data.draw(st.sampled_from([0, context // 2, context]), "first") for context in contexts]
    drawn = zip(trees, contexts, tables, firsts, strict=True)
    rows = [Row([1] * len(tree), context, table, first) for tree, context, table, first in drawn]
    batch = make_batch(rows, size)
    if not chain:
        batch = batch._replace(tree=torch.tensor([mask for tree in trees for mask in masks(tree)]))
    q = torch.randn(batch.starts[-1], heads, WIDTH, generator=generator)
    k = torch.randn(batch.starts[-1], kv_heads, WIDTH, generator=generator)
    out = PagedAttend(pool, batch)(0, q, k, k[..., : pool.spec.v_dim], SCALE)
    for r, (tree, context, first) in enumerate(zip(trees, contexts, firsts, strict=True)):
        for node in range(len(tree)):
            places = visible(tree, context, node, first)
            slots = torch.tensor([tables[r][place // size] * size + place % size for place in places])
            expected = attention(q[batch.starts[r] + node], pool.k[0][slots], pool.v[0][slots])
            torch.testing.assert_close(out[batch.starts[r] + node], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("later", [False, True], ids=["the batch", "its row"])
@pytest.mark.parametrize("context", [0, 2, 40])
def test_places_below_first_are_never_seen(context: int, later: bool) -> None:
    """What lies there is no number to add, and no row at or above `first` notices."""
    first, rows = 3, 6
    pool = Pool(CacheSpec(1, 1, WIDTH, WIDTH, True), 24, 4, torch.float32)
    pool.k[0].normal_(generator=torch.Generator().manual_seed(0))
    pool.k[0][:first] = 1e30
    ours, another = Row([1] * rows, context, list(range(12)), first), Row([1] * rows, context, list(range(12, 24)))
    batch = make_batch([ours, another] if later else [ours], 4, first=0 if later else first)
    count = batch.starts[-1]
    q, k = (torch.randn(count, 1, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    k[: max(0, first - context)] = 1e30
    out = PagedAttend(pool, batch)(0, q, k, k, SCALE)
    for row in range(max(0, first - context), rows):
        seen = pool.k[0][first : context + row + 1]
        torch.testing.assert_close(out[row], attention(q[row], seen, seen), rtol=1e-4, atol=1e-5)
    assert out.isfinite().all()


@pytest.mark.parametrize("pieces", [[64], [128], [512, 64], [512, 512, 320]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_the_kernel_equals_the_reference(pieces: list[int], heads: int, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        [torch.randn(piece, kv_heads, width, generator=generator) for piece in pieces] for width in (WIDTH, WIDTH // 2)
    )
    q = torch.randn(5, heads, WIDTH, generator=generator)
    for sight in (Sight(5, sum(pieces), sum(pieces) - 9, 3, q.device), Sight(5, sum(pieces), 1, 4, q.device)):
        ours = attend_rows(q, keys, values, sight, SCALE)
        torch.testing.assert_close(ours, reference.attend_rows(q, keys, values, sight, SCALE), rtol=1e-4, atol=1e-5)
