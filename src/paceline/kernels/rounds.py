"""Rounds of drafting and verifying in one call of `rounds.c`, between which nobody has to be asked."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import heads, native
from paceline.kernels.chain import Asked, Chain, numbers_of
from paceline.kernels.layer import PackedStack
from paceline.kernels.linear import BLOCK
from paceline.kernels.pages import Rooms
from paceline.kernels.reference import token_hashes

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


class _Rounds(ctypes.Structure):
    """`Rounds` of rounds.c."""

    _fields_ = (
        *((name, _POINTER) for name in ("stack", "chain", "head", "bias", "pool", "hashes")),
        *((name, _LONG) for name in ("hidden", "vocab", "block_size", "stride")),
    )


class _Burst(ctypes.Structure):
    """`Burst` of rounds.c."""

    _fields_ = (
        *((name, _POINTER) for name in ("lines", "ways", "tokens", "blocks")),
        *((name, _POINTER) for name in ("brought", "trails", "emitted", "accepted", "spent", "drafts", "stop_tokens")),
        *((name, _POINTER) for name in ("heats", "carried", "states", "outputs", "scratch", "room")),
        *((name, _LONG) for name in ("requests", "drafting", "most", "rows", "made", "threads", "done")),
        ("nanoseconds", _LONG * 3),
    )


class Batch(NamedTuple):
    """Requests in order of falling width, and of each the tokens that would end it, and how many it may bring at all,
    more than its width. Of those whose width is not 0 the `counts` of rows that their modules read first, and the
    features that wait, as `Chain` takes them."""

    asked: Sequence[Asked]
    stops: Sequence[Sequence[int]]
    left: Sequence[int]
    counts: list[list[int]]
    carried: Tensor | None

    def sizes(self, most: int) -> list[list[int]]:
        """By module and request: rows for what it may make of committed tokens. None where nobody reads it."""
        return [
            [
                some[d] - d + most * (a.width + 1) if d + 1 < len(some) + (not a.silent) else 0
                for a, some in zip(self.asked, self.counts, strict=False)
            ]
            for d in range(len(self.asked[0].starts))
        ]

    @property
    def made(self) -> list[int]:
        """By module, the most rows of a round; then by request those beyond the last module."""
        pairs = list(zip(self.asked, self.counts, strict=False))
        rows = [
            sum(max(some[d], a.width + 1 + d) for a, some in pairs if d < len(some))
            for d in range(len(self.asked[0].starts))
        ]
        return rows + [a.width - len(some) for a, some in pairs]


class Outcome(NamedTuple):
    """What rounds brought, by request, in the order in which they were asked: its tokens, the drafts accepted in each
    round, and the row of `states` [.., hidden] where the target's states before these tokens begin.

    outputs: of modules, depth by depth and request by request, `sizes` of rows, of which the first are what they made
    of committed tokens. seconds: of drafting in all, of the target's passes, and of all else; each: of each round."""

    tokens: list[list[int]]
    accepted: list[list[int]]
    at: list[int]
    states: Tensor
    outputs: Tensor
    sizes: list[list[int]]
    seconds: list[float]
    each: list[float]


class Rounds:
    """`chain` drafts, or nobody does; the stack and its head verify."""

    def __init__(
        self,
        stack: PackedStack,
        head: tuple[Tensor, Tensor | None],
        memory: Sequence[Tensor],
        block_size: int,
        chain: Chain | None,
    ) -> None:
        """head: as `pack_weight` lays it out, and its bias. memory: of each layer's slots, one behind the other."""
        self.stack, self.chain, self.hidden, self.vocab = stack, chain, stack.hidden, BLOCK * head[0].shape[0]
        self.held = (*head, memory[0], token_hashes(self.vocab, torch.device("cpu")))  # as long as `where` points there
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in self.held)
        sizes = (self.hidden, self.vocab, block_size, memory[0].numel())
        self.struct = _Rounds(stack.where, None if chain is None else chain.where, *pointers, *sizes)
        self.where = ctypes.addressof(self.struct)
        self.rooms = Rooms()
        self.per_row = 7 * 8 + 2 * (3 * self.hidden + self.vocab)

    def __call__(self, batch: Batch, most: int) -> Outcome:
        """That many rounds, or fewer: none after one that brings a request one of its `stops`, or so many tokens that
        it may bring no more than its width. Everybody's blocks have room for all of it."""
        asked, drafting = batch.asked, len(batch.counts)
        spare, sizes = [most * (a.width + 1) for a in asked], batch.sizes(most)
        numbers, offsets = numbers_of(asked, drafting, spare)
        results, places = _results(batch, spare, sizes, most)
        states, outputs = (self.rows(sum(each)) for each in (spare, map(sum, sizes)))
        heats = array("f", [a.heat for a in asked])
        burst = _Burst(
            *(numbers.buffer_info()[0] + 8 * offset for offset in offsets),
            *(results.buffer_info()[0] + 8 * place for place in places),
            heats.buffer_info()[0],
            *(None if x is None else x.data_ptr() for x in (batch.carried, states, outputs)),
            *self._work(batch, spare),
        )
        burst.most = most
        native.call("run_rounds", self.where, ctypes.addressof(burst))
        each = results[places[4] : places[4] + burst.done]
        seconds = (_seconds(burst.nanoseconds), _seconds(each))
        return Outcome(*_brought(burst, results, places, len(asked)), states, outputs, sizes, *seconds)

    def rows(self, count: int) -> Tensor:
        return torch.empty(count, self.hidden, dtype=torch.bfloat16)

    def _work(self, batch: Batch, spare: list[int]) -> tuple[int, ...]:
        """Scratch and room, then the sizes of `_Burst` from `requests` on."""
        asked, drafting, threads = batch.asked, len(batch.counts), torch.get_num_threads()
        rows, made, stack, chain = sum(a.width + 1 for a in asked), batch.made, self.stack, self.chain
        longest = max(len(a.tokens) + a.width + more for a, more in zip(asked, spare, strict=True))
        size = rows * (self.per_row + stack.room) + stack.once + 2 * self.hidden * sum(made) + 64
        if chain is not None and made:
            size += max(made) * chain.per_row + drafting * chain.per_request + chain.once
        scratch = self.rooms.scratch.of(heads.scratch_bytes(longest, threads))
        return scratch, self.rooms.layers.of(size), len(asked), drafting, 0, max(made, default=0), sum(made), threads


def _results(batch: Batch, spare: list[int], sizes: list[list[int]], most: int) -> tuple[array[int], tuple[int, ...]]:
    """What rounds.c writes, and what ends requests; where in it `brought` to `stop_tokens` begin."""
    asked, flat = batch.asked, [size for row in sizes for size in row]
    ends = list(accumulate(map(len, batch.stops), initial=0))
    brought = zip(accumulate(spare, initial=0), [0] * len(asked), ends, ends[1:], batch.left, strict=False)
    trails = zip(accumulate(flat, initial=0), [0] * len(flat), strict=False)
    parts: list[list[int]] = [
        [x for one in brought for x in one],
        [x for one in trails for x in one],
        [0] * sum(spare),
        [0] * (most * len(asked)),
        [0] * most,
        [0] * (asked[0].width * len(batch.counts)),
        [token for tokens in batch.stops for token in tokens],
    ]
    places = accumulate(map(len, parts[:-1]), initial=0)
    return array("q", [x for part in parts for x in part]), tuple(places)


def _brought(
    burst: _Burst, results: array[int], places: tuple[int, ...], requests: int
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """`Outcome.tokens`, `accepted` and `at`."""
    emitted, accepted = places[2], places[3]
    at, counts = results[: 5 * requests : 5].tolist(), results[1 : 5 * requests : 5].tolist()
    tokens = [results[emitted + a : emitted + a + n].tolist() for a, n in zip(at, counts, strict=True)]
    end = accepted + burst.done * requests
    return tokens, [results[accepted + r : end : requests].tolist() for r in range(requests)], at


def _seconds(nanoseconds: Iterable[int]) -> list[float]:
    return [1e-9 * spent for spent in nanoseconds]
