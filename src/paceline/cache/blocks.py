"""Who holds which block of the pool, and which blocks hold text that others can share. Knows no torch and no request.

A block is held (by one request or by several), idle (held by none, its text still worth finding: the prefix cache), or
blank. A full block is found again by a digest of its tokens and of all tokens before it, so equal digests mean equal
text from the start on; the digest is cryptographic, so tokens need not be compared.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice

_ROOT = b""  # the parent digest of a text's first block


class BlockAllocator:
    """Hands out `num_blocks` blocks of `block_size` tokens each.

    Runs of consecutive blocks are preferred, since attention reads such a run as one piece of memory.

    Example: block_size 2, tokens [5, 6, 7, 8, 9] in blocks [0, 1, 2], all read: blocks 0 and 1 are full and registered;
    after release, match([5, 6, 7, 8]) is [0]: block 1 would leave no token to read.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        self.num_blocks, self.block_size, self.prefix_caching = num_blocks, block_size, prefix_caching
        self._holders = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._found: dict[bytes, int] = {}  # digest -> the block that answers for it
        self._idle: dict[int, None] = {}  # least recently used first
        self._blank = bytearray(b"\x01" * num_blocks)  # one byte a block, so that `find` finds a run
        self._num_blank = num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out: blank ones, and idle ones whose text would be lost."""
        return self._num_blank + len(self._idle)

    def num_idle(self, blocks: Sequence[int]) -> int:
        """How many of these blocks are free as long as nobody shares them."""
        return sum(not self._holders[block] for block in blocks)

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Blocks that already hold the longest known beginning of `tokens`; at least one token is left to read.

        Nothing is held yet: call `share` before the next `allocate`."""
        found: list[int] = []
        digest, size = _ROOT, self.block_size
        if self._found:
            for end in range(size, len(tokens), size):
                digest = _digest(digest, tokens[end - size : end])
                block = self._found.get(digest)
                if block is None:
                    break
                found.append(block)
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """One more holder for each of these blocks."""
        for block in blocks:
            if not self._holders[block]:
                del self._idle[block]
            self._holders[block] += 1

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """`count` blocks, at most `num_free`, each held once, in ascending runs, if possible on from block `after`."""
        assert 0 <= count <= self.num_free, "the caller looks at num_free first"
        if count > self._num_blank:
            # Some more than needed, so that what was released together is taken together, in one run.
            self._evict(max(count - self._num_blank, self.num_blocks // 32))
        taken: list[int] = []
        while len(taken) < count:
            run = self._run(count - len(taken), taken[-1] if taken else after)
            self._blank[run.start : run.stop] = bytes(len(run))
            self._num_blank -= len(run)
            taken.extend(run)
        for block in taken:
            self._holders[block] = 1
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each block. A text's end becomes idle before its beginning, and so is lost first."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} was released more often than it was held"
            if not self._holders[block]:
                digest = self._digests[block]
                if digest is not None and self._found.setdefault(digest, block) == block:
                    self._idle[block] = None
                else:
                    self._erase(block)

    def register(self, blocks: Sequence[int], tokens: Sequence[int], cached: int) -> None:
        """Makes the full blocks of a text known, whose first `cached` tokens were read; known ones cost nothing."""
        if not self.prefix_caching:
            return
        size, full = self.block_size, cached // self.block_size
        start = full
        while start and self._digests[blocks[start - 1]] is None:
            start -= 1
        for i in range(start, full):
            parent = self._digests[blocks[i - 1]] if i else _ROOT
            assert parent is not None
            digest = _digest(parent, tokens[i * size : (i + 1) * size])
            self._digests[blocks[i]] = digest
            self._found.setdefault(digest, blocks[i])

    def _run(self, wanted: int, after: int | None) -> range:
        """At most `wanted` consecutive blank blocks: from `after` on, else the lowest run that is long enough."""
        blank = self._blank
        start = self.num_blocks if after is None else after + 1
        if start >= self.num_blocks or not blank[start]:
            length = wanted
            while (start := blank.find(b"\x01" * length)) < 0:
                length //= 2
        end = blank.find(b"\x00", start, start + wanted)
        return range(start, end if end >= 0 else min(start + wanted, self.num_blocks))

    def _evict(self, count: int) -> None:
        for block in list(islice(self._idle, count)):
            del self._idle[block]
            digest = self._digests[block]
            assert digest is not None
            del self._found[digest]
            self._erase(block)

    def _erase(self, block: int) -> None:
        self._digests[block] = None
        self._blank[block] = 1
        self._num_blank += 1


def _digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=32).digest()
