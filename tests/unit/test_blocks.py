"""The block allocator against a model of it: nothing is held twice by mistake, everything comes back, hits are true."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from paceline.cache.blocks import BlockAllocator

SIZE, BLOCKS = 2, 9


class AllocatorMachine(RuleBasedStateMachine):
    """Texts come, share, read on, and leave. `content[b]`: the text up to the end of block b, as last written."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(BLOCKS, SIZE)
        self.content: dict[int, tuple[int, ...]] = {}
        self.live: list[tuple[list[int], list[int]]] = []

    texts = Bundle("texts")

    @rule(target=texts, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=10), ahead=st.integers(0, 2))
    def arrive(self, tokens: list[int], ahead: int) -> tuple[list[int], list[int]]:
        hits = self.allocator.match(tokens)
        assert len(hits) * SIZE < len(tokens), "a hit leaves a token to read"
        for i, block in enumerate(hits):
            assert self.content[block] == tuple(tokens[: (i + 1) * SIZE]), "a hit on another text"
        need = -(-len(tokens) // SIZE) + ahead - len(hits)
        if need + self.allocator.num_idle(hits) > self.allocator.num_free:
            text: tuple[list[int], list[int]] = ([], [])
        else:
            self.allocator.share(hits)
            text = (tokens, hits + self.allocator.allocate(need, hits[-1] if hits else None))
            for i in range(len(hits), len(tokens) // SIZE):
                self.content[text[1][i]] = tuple(tokens[: (i + 1) * SIZE])
        self.live.append(text)
        return text

    @rule(text=texts, part=st.integers(0, 10))
    def read(self, text: tuple[list[int], list[int]], part: int) -> None:
        tokens, blocks = text
        self.allocator.register(blocks, tokens, min(part, len(tokens)))

    @rule(text=consumes(texts))
    def leave(self, text: tuple[list[int], list[int]]) -> None:
        self.live.remove(text)
        self.allocator.release(text[1])

    @invariant()
    def no_block_is_lost_or_held_twice(self) -> None:
        holders = Counter(block for _, blocks in self.live for block in blocks)
        assert self.allocator.num_free == BLOCKS - len(holders)
        for block, count in holders.items():
            texts = {tuple(t[: (b.index(block) + 1) * SIZE]) for t, b in self.live if block in b}
            assert count == 1 or len(texts) == 1, "requests with different texts share a block"

    def teardown(self) -> None:
        for text in self.live:
            self.allocator.release(text[1])
        assert self.allocator.num_free == BLOCKS
        assert sorted(self.allocator.allocate(BLOCKS)) == list(range(BLOCKS))
        assert self.allocator.match([0] * 10) == [], "a block that was handed out again is still found"


AllocatorMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAllocatorMachine = AllocatorMachine.TestCase


def test_the_docstring_example() -> None:
    allocator = BlockAllocator(8, 2)
    tokens = [5, 6, 7, 8, 9]
    blocks = allocator.allocate(3)
    assert blocks == [0, 1, 2]
    allocator.register(blocks, tokens, 5)
    allocator.release(blocks)
    assert allocator.match([5, 6, 7, 8]) == [0]
    assert allocator.match(tokens) == [0, 1]
    assert allocator.match([5, 6, 0, 8, 9]) == [0]
    assert allocator.match([7, 8, 9]) == [], "the same tokens after another beginning are another text"


def test_only_full_blocks_that_were_read_are_found() -> None:
    allocator = BlockAllocator(8, 4)
    tokens = list(range(12))
    blocks = allocator.allocate(3)
    for read, found in ((0, 0), (3, 0), (4, 1), (7, 1), (11, 2)):
        allocator.register(blocks, tokens, read)
        assert allocator.match([*tokens, 99]) == blocks[:found]


def test_runs_are_consecutive_and_go_on() -> None:
    allocator = BlockAllocator(16, 1)
    first = allocator.allocate(4)
    second = allocator.allocate(4)
    assert (first, second) == ([0, 1, 2, 3], [4, 5, 6, 7])
    allocator.release(first)
    assert allocator.allocate(2, after=7) == [8, 9], "goes on behind the block before"
    assert allocator.allocate(5) == [10, 11, 12, 13, 14], "a run that is long enough, not the first hole"
    assert allocator.allocate(3, after=14) == [15, 0, 1]


def test_the_least_recently_used_text_is_lost_first_and_its_end_before_its_beginning() -> None:
    allocator = BlockAllocator(6, 1)
    for text in ([1, 2, 3], [4, 5, 6]):
        blocks = allocator.allocate(3)
        allocator.register(blocks, text, 3)
        allocator.release(blocks)
    allocator.allocate(1)
    assert len(allocator.match([1, 2, 3, 0])) == 2
    assert len(allocator.match([4, 5, 6, 0])) == 3
    allocator.allocate(2)
    assert allocator.match([1, 2, 3, 0]) == []
    assert len(allocator.match([4, 5, 6, 0])) == 3


def test_a_twin_takes_over_when_the_known_block_is_lost() -> None:
    """Two requests read the same text at once; one block answers for it, later the other one can."""
    allocator = BlockAllocator(4, 2)
    first, second = allocator.allocate(1), allocator.allocate(1)
    for blocks in (first, second):
        allocator.register(blocks, [7, 8], 2)
    assert allocator.match([7, 8, 9]) == first
    allocator.release(first)
    allocator.allocate(3)
    assert allocator.match([7, 8, 9]) == []
    allocator.release(second)
    assert allocator.match([7, 8, 9]) == second


def test_without_prefix_caching_nothing_is_found() -> None:
    allocator = BlockAllocator(4, 2, prefix_caching=False)
    blocks = allocator.allocate(2)
    allocator.register(blocks, [1, 2, 3, 4], 4)
    allocator.release(blocks)
    assert allocator.match([1, 2, 3, 4, 5]) == []


def test_a_block_cannot_be_released_twice() -> None:
    allocator = BlockAllocator(2, 2)
    blocks = allocator.allocate(1)
    allocator.release(blocks)
    with pytest.raises(AssertionError, match="more often"):
        allocator.release(blocks)
