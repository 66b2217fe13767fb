"""Modules that draft one after the other, for a batch of requests, in one call of `chain.c`."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import heads, native
from paceline.kernels.layer import PackedModule
from paceline.kernels.linear import BLOCK
from paceline.kernels.pages import Rooms
from paceline.kernels.reference import token_hashes

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


class Depth(NamedTuple):
    """A module, its head as `pack_weight` lays it out, the head's bias, and the pool's memory of its layer."""

    module: PackedModule
    head: Tensor
    bias: Tensor | None
    memory: Tensor


class Asked(NamedTuple):
    """A request that wants `width` drafts behind its committed tokens. starts, firsts: of each module that drafts, the
    slot where its rows begin, and the first that it sees. heat: the temperature, 0 for greedy drafts. silent: of the
    last of them only the last output is wanted."""

    width: int
    tokens: list[int]
    starts: list[int]
    firsts: list[int]
    blocks: list[int]
    seed: int
    heat: float
    silent: bool = False

    @property
    def counts(self) -> list[int]:
        """Rows of each module. Example: 9 tokens, of which module 2 read 8: two rows, the last token and the first
        draft. Features wait for as many rows as a module has more than the one before."""
        length = len(self.tokens)
        return [length + d - start for d, start in enumerate(self.starts)]


class _Depth(ctypes.Structure):
    """`Depth` of chain.c."""

    _fields_ = (*((name, _POINTER) for name in ("module", "head", "bias", "pool")), ("codes", _LONG))


def _struct(depth: Depth) -> _Depth:
    module, *tensors = depth
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    return _Depth(module.where, *pointers, depth.head.dtype == torch.int8)


class _Chain(ctypes.Structure):
    """`Chain` of chain.c."""

    _fields_ = (
        ("depths", _POINTER),
        ("hashes", _POINTER),
        *((name, _LONG) for name in ("count", "hidden", "vocab", "block_size", "window")),
    )


class Chain:
    """Drafts, each from its module's last output; beyond the last module from that one's own."""

    def __init__(self, depths: Sequence[Depth], block_size: int, window: int) -> None:
        self.depths, layers = depths, [depth.module.layer for depth in depths]
        self.hidden, self.vocab = layers[0].hidden, BLOCK * depths[0].head.shape[0]
        self.structs = (_Depth * len(depths))(*(_struct(depth) for depth in depths))
        sizes = (self.hidden, self.vocab, block_size, window)
        self.hashes = token_hashes(self.vocab, torch.device("cpu"))
        self.struct = _Chain(ctypes.addressof(self.structs), self.hashes.data_ptr(), len(depths), *sizes)
        self.where = ctypes.addressof(self.struct)
        self.rooms = Rooms()
        self.once = max(layer.once for layer in layers)
        self.per_row = 4 * 8 + 2 * self.hidden + max(depth.module.room for depth in depths)
        self.per_request = 3 * 8 + 2 * self.hidden + 2 * self.vocab

    def __call__(self, asked: Sequence[Asked], counts: list[list[int]], carried: Tensor) -> tuple[Tensor, list[int]]:
        """asked: in order of falling width, of at least 1; counts: theirs. carried [.., hidden]: the features that
        wait, module by module, request by request. The outputs of each module's rows of each request, as far as they
        are wanted, in the same order, then those beyond the last module; and the drafts, depth by depth, as many of
        each as there are requests. What the modules read is in the pool afterwards."""
        width, requests, threads = asked[0].width, len(asked), torch.get_num_threads()
        rows = counts[0] if requests == 1 else [sum(some) for some in zip_longest(*counts, fillvalue=0)]
        beyond = sum(max(0, a.width - len(self.depths)) for a in asked)
        longest = max(len(a.tokens) for a in asked) + width
        assert carried.shape[0] == sum(some[-1] for some in counts), "every row reads what waits, or what was just made"
        unwanted = sum(some[-1] - 1 for a, some in zip(asked, counts, strict=True) if a.silent)
        outputs = torch.empty(sum(rows) - unwanted + beyond, self.hidden, dtype=torch.bfloat16)
        room = self.rooms.layers.of(max(rows) * self.per_row + requests * self.per_request + self.once)
        scratch = self.rooms.scratch.of(heads.scratch_bytes(longest, threads))
        drafts = array("q", bytes(8 * width * requests))
        heats, (numbers, offsets) = array("f", [a.heat for a in asked]), numbers_of(asked, requests)
        lists = [numbers.buffer_info()[0] + 8 * offset for offset in offsets]
        native.call(
            "draft_chain", self.where, *lists, heats.buffer_info()[0], carried.data_ptr(), outputs.data_ptr(),
            drafts.buffer_info()[0], scratch, room, requests, max(rows), threads,
        )  # fmt: skip
        return outputs, drafts.tolist()


def numbers_of(
    asked: Sequence[Asked], drafting: int, spare: Sequence[int] = ()
) -> tuple[array[int], tuple[int, int, int, int]]:
    """What chain.c reads of the requests, of which the first `drafting` draft, and where in it begin requests, ways,
    tokens and blocks. spare: room behind each one's tokens."""
    about: list[int] = []
    tokens: list[int] = []
    blocks: list[int] = []
    for r, a in enumerate(asked):
        known = min(len(a.tokens) - 1, *a.starts) if a.starts else len(a.tokens) - 1
        about += (a.width, len(a.tokens), known, len(tokens), len(blocks), a.seed, a.silent)
        tokens += a.tokens[known:]
        if spare:
            tokens += [0] * spare[r]
        blocks += a.blocks
    for d in range(len(asked[0].starts)):
        for a in asked[:drafting]:
            about += (a.starts[d], a.firsts[d]) if d < len(a.starts) else (0, 0)
    tables = [0] * (4 * len(asked) + 1)  # where C writes those of each pass
    numbers = array("q", [*about, *tokens, *tables, *blocks])
    return numbers, (0, 7 * len(asked), len(about), len(numbers) - len(blocks))


def pack_chain(depths: Sequence[Depth | None], block_size: int, window: int) -> Chain | None:
    """window: how many slots a row sees at most, 0: all. None where one of them has not all its parts compiled."""
    whole = [depth for depth in depths if depth is not None]
    return Chain(whole, block_size, window) if len(whole) == len(depths) else None
