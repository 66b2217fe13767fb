"""Memory in large pages holds what was put into it, and begins where such a page does."""

from __future__ import annotations

import mmap
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from paceline.cache.pool import Pool
from paceline.errors import UserError
from paceline.kernels import pages
from paceline.kernels.pages import CHUNK, LARGE, LINE, Pages
from paceline.layers.attention import CacheSpec

MANY = [(3, 5), (7,), (1000, 40), (2, 3, 4), (CHUNK // 2 + 1,), (1,), (CHUNK,), (0,), (5, 64)]


def test_tensors_are_kept_as_they_are_each_on_its_own_lines() -> None:
    kept = Pages()
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(MANY)]
    given = [x.to(torch.bfloat16) if i % 2 else x for i, x in enumerate(given)]
    copies = [kept.keep(x) for x in given]
    assert all(
        torch.equal(x, y) and x.dtype == y.dtype and y.is_contiguous() for x, y in zip(given, copies, strict=True)
    )
    assert all(y.data_ptr() % LINE == 0 for y in copies)
    taken = sorted((y.data_ptr(), y.data_ptr() + y.nbytes) for y in copies if y.numel())
    assert all(end <= begin for (_, end), (begin, _) in pairwise(taken))


def test_small_tensors_lie_side_by_side() -> None:
    kept = Pages()
    first, second = (kept.keep(torch.ones(LINE, dtype=torch.uint8)) for _ in range(2))
    assert second.data_ptr() - first.data_ptr() == LINE


def test_what_the_cpu_does_not_read_as_it_lies_stays() -> None:
    away = torch.empty(3, device="meta")
    assert Pages().keep(away) is away


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages to ask for")
def test_memory_begins_with_a_large_page_and_is_zero() -> None:
    found = pages.zeros((3, LARGE), torch.int16)
    assert found.data_ptr() % LARGE == 0 and not found.any() and found.shape == (3, LARGE)


@pytest.mark.parametrize("without", ["MADV_HUGEPAGE", "madvise"])
def test_elsewhere_it_is_plain_memory(monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    if without == "madvise":

        class Refusing(mmap.mmap):
            def madvise(self, *_: int) -> None:
                raise OSError

        monkeypatch.setattr(mmap, "mmap", Refusing)
    else:
        monkeypatch.delattr(mmap, without, raising=False)
    assert torch.equal(Pages().keep(torch.arange(9)), torch.arange(9))
    assert not pages.zeros((5,), torch.float32).any()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell what is resident here")
def test_a_preallocated_pool_has_its_memory_at_once() -> None:
    pool = Pool(CacheSpec(4, 8, 128, 128), 256, 16, torch.float32)
    size, before = pool.memory[0].untyped_storage().nbytes(), resident()
    assert size > 100 << 20
    pool.preallocate()
    assert resident() - before > 0.9 * size and not any(memory.any() for memory in pool.memory)


def test_more_than_there_is() -> None:
    with pytest.raises(UserError, match=r"There is no memory for \d+ KV blocks of 16; lower num_blocks\."):
        Pool(CacheSpec(4, 8, 128, 128), 1 << 40, 16, torch.float32)
