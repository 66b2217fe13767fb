"""Attention over pages in one compiled call equals the reference, and a row is its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from paceline.batch import tables_of
from paceline.kernels import heads as kernel
from paceline.kernels import native, reference
from paceline.kernels.heads import Kept, attend_heads, attends_heads
from paceline.kernels.latent import Tables

BF16 = torch.bfloat16
BLOCK = 4
CONTEXTS, COUNTS = [0, 5, 37], [6, 1, 11]  # of three requests
compiled = pytest.mark.skipif(native.library() is None, reason="this machine has no C compiler, or is not Linux")


@pytest.fixture(autouse=True, params=["AMD's", "others'"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as they are quick on one maker's processors, or on others; both run on both."""
    if (library := native.library()) is not None:
        library = native.made_for(amd=request.param == "AMD's")
    monkeypatch.setattr(native, "library", lambda: library)


class Sizes(NamedTuple):
    heads: int
    kv_heads: int
    own: int
    rest: int
    v_dim: int


SIZES = {
    "each head its own": Sizes(4, 4, 64, 0, 64),
    "groups": Sizes(12, 2, 128, 0, 128),
    "one key head, small": Sizes(5, 1, 32, 0, 32),
    "a shared part": Sizes(4, 4, 64, 64, 64),
    "a large value": Sizes(6, 3, 96, 32, 160),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


class Drawn:
    """Queries, and a pool whose blocks are scattered; keys, shared parts and values lie side by side in a slot."""

    def __init__(self, sizes: Sizes, first: int, window: int) -> None:
        s = self.sizes = sizes
        self.window = window
        needs = [-(-(context + count) // BLOCK) for context, count in zip(CONTEXTS, COUNTS, strict=True)]
        blocks = torch.randperm(sum(needs), generator=torch.Generator().manual_seed(1)).tolist()
        self.tables = [[blocks.pop() for _ in range(need)] for need in needs]
        self.firsts = [first, 2 * first, 3 * first]
        widths = (s.kv_heads * s.own, s.rest, s.kv_heads * s.v_dim)
        keys, shared, values = draw(sum(needs) * BLOCK, sum(widths)).split(widths, dim=1)
        self.kept = Kept(
            keys.unflatten(1, (s.kv_heads, s.own)),
            shared,
            values.unflatten(1, (s.kv_heads, s.v_dim)),
        )
        self.q = 0.5 * draw(sum(COUNTS), s.heads, s.own + s.rest, seed=2)

    def attended(self, pieces: list[tuple[int, int, int]]) -> Tensor:
        """pieces: request, its first row here, the row after its last."""
        begins = [sum(COUNTS[:r]) for r in range(3)]
        rows = torch.cat([self.q[begins[r] + start : begins[r] + end] for r, start, end in pieces])
        starts = [0, *accumulate(end - start for _, start, end in pieces)]
        places = [CONTEXTS[r] + start for r, start, _ in pieces]
        numbers = tables_of(starts, places, [self.firsts[r] for r, *_ in pieces], [self.tables[r] for r, *_ in pieces])
        where = Tables.of(torch.tensor(numbers), starts, places)
        return attend_heads(rows, self.kept, where, BLOCK, 0.3, self.window)

    def truth(self, r: int) -> Tensor:
        return torch.cat([self.truth_of(r, row) for row in range(COUNTS[r])])

    def truth_of(self, r: int, row: int) -> Tensor:
        place = CONTEXTS[r] + row
        first = max(self.firsts[r], place + 1 - self.window) if self.window else self.firsts[r]
        length = place + 1
        slots = torch.tensor([self.tables[r][p // BLOCK] * BLOCK + p % BLOCK for p in range(length)])
        keys, shared, values = self.kept
        if self.sizes.rest:
            keys = torch.cat((keys, shared[:, None].expand(-1, keys.shape[1], -1)), dim=-1)
        sight = reference.Sight(1, length, place, first, self.q.device)
        q = self.q[sum(COUNTS[:r]) + row][None].float()
        return reference.attend_rows(q, [keys[slots].float()], [values[slots].float()], sight, 0.3)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(kernel, "SHARED_AT_LEAST", 0)
    yield request.param
    torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize(("first", "window"), [(0, 0), (2, 0), (9, 0), (0, 1), (0, 7), (2, 20), (9, 33)])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@torch.inference_mode()
def test_it_equals_the_reference_and_a_row_is_its_own(
    sizes: Sizes, first: int, window: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(sizes, first, window)
    assert attends_heads(drawn.q, drawn.kept)
    whole = drawn.attended([(r, 0, count) for r, count in enumerate(COUNTS)]).split(COUNTS)
    monkeypatch.setattr(kernel, "SHARED_AT_LEAST", 1 << 60)
    for r, count in enumerate(COUNTS):
        torch.testing.assert_close(whole[r].float(), drawn.truth(r), rtol=2e-2, atol=1e-2)
        for cut in (1, 3, 4, 7):
            pieces = [(r, start, min(start + cut, count)) for start in range(0, count, cut)]
            assert torch.equal(torch.cat([drawn.attended([piece]) for piece in pieces]), whole[r])


@torch.inference_mode()
def test_uneven_heads_take_another_way() -> None:
    kept = Kept(draw(8, 2, 80), draw(8, 0), draw(8, 2, 80))
    assert not attends_heads(draw(3, 4, 80), kept)
