"""Modules that draft one after the other, for a batch of requests, in one call of `chain.c`."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import heads, latent, native
from paceline.kernels.layer import PackedModule
from paceline.kernels.linear import BLOCK

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


class Depth(NamedTuple):
    """A module, its head as `pack_weight` lays it out, the head's bias, and the pool's memory of its layer."""

    module: PackedModule
    head: Tensor
    bias: Tensor | None
    memory: Tensor


class Way(NamedTuple):
    """A module's rows of a request begin at slot `start`; it sees those from `first` on; so many features wait."""

    start: int
    first: int
    waiting: int


class Asked(NamedTuple):
    """A request that wants `width` drafts behind its committed tokens. ways: of each module that drafts, in order."""

    width: int
    tokens: list[int]
    ways: list[Way]
    blocks: list[int]

    def counts(self) -> list[int]:
        """Rows of each module. Example: 9 tokens, of which module 2 read 8: two rows, the last token and the first
        draft."""
        return [len(self.tokens) + d - way.start for d, way in enumerate(self.ways)]

    @property
    def joined(self) -> bool:
        """Whether each module reads what waits for it and then all that the module before makes, if only a row."""
        counts = self.counts()
        made = zip(self.ways, [0, *counts], counts, strict=False)
        return counts[0] > 0 and all(way.waiting + before == count for way, before, count in made)


class _Depth(ctypes.Structure):
    """`Depth` of chain.c."""

    _fields_ = tuple((name, _POINTER) for name in ("module", "head", "bias", "pool"))


def _struct(depth: Depth) -> _Depth:
    module, *tensors = depth
    return _Depth(module.where, *(None if tensor is None else tensor.data_ptr() for tensor in tensors))


class _Chain(ctypes.Structure):
    """`Chain` of chain.c."""

    _fields_ = (
        ("depths", _POINTER),
        *((name, _LONG) for name in ("count", "hidden", "vocab", "block_size", "heads", "shared")),
    )


class Chain:
    """Drafts, each from its module's last output; beyond the last module from that one's own."""

    def __init__(self, depths: Sequence[Depth], block_size: int) -> None:
        self.depths, layers = depths, [depth.module.layer for depth in depths]
        self.hidden, self.vocab = layers[0].hidden, BLOCK * depths[0].head.shape[0]
        self.structs = (_Depth * len(depths))(*(_struct(depth) for depth in depths))
        sizes = (self.hidden, self.vocab, block_size, layers[0].half.shape.heads, 4 * latent.SHARED_AT_LEAST)
        self.struct = _Chain(ctypes.addressof(self.structs), len(depths), *sizes)
        self.where = ctypes.addressof(self.struct)
        self.once = max(layer.once for layer in layers)
        self.per_row = 3 * 8 + 2 * self.hidden + max(depth.module.room for depth in depths)
        self.per_request = 2 * 8 + 2 * self.hidden + 2 * self.vocab

    def __call__(self, asked: Sequence[Asked], carried: Tensor) -> tuple[Sequence[Tensor], list[list[int]]]:
        """asked: in order of falling width, of at least 1. carried [.., hidden]: the features that wait, module by
        module, request by request. Each module's outputs, as many rows as it had in all, and each depth's drafts; what
        the modules read is in the pool afterwards."""
        width, requests, threads = asked[0].width, len(asked), torch.get_num_threads()
        counts = [sum(some) for some in zip_longest(*(a.counts() for a in asked), fillvalue=0)]
        beyond = sum(max(0, a.width - len(self.depths)) for a in asked)
        most, longest = max(counts), max(len(a.tokens) for a in asked) + width
        outputs = torch.empty(sum(counts) + beyond, self.hidden, dtype=torch.bfloat16)
        room = torch.empty(most * self.per_row + requests * self.per_request + self.once, dtype=torch.uint8)
        scratch, drafts = heads.scratch_for(longest, threads), array("q", bytes(8 * width * requests))
        numbers, offsets = _numbers(asked)
        lists = (numbers.buffer_info()[0] + 8 * offset for offset in offsets)
        native.call(
            "draft_chain", self.where, *lists, carried.data_ptr(), outputs.data_ptr(), drafts.buffer_info()[0],
            scratch.data_ptr(), room.data_ptr(), requests, most, threads,
        )  # fmt: skip
        found = drafts.tolist()
        made = outputs.split([*counts, beyond])[:-1]
        return made, [found[i : i + requests] for i in range(0, len(found), requests)]


def _numbers(asked: Sequence[Asked]) -> tuple[array[int], tuple[int, int, int, int]]:
    """What draft_chain reads of the requests, and where in it begin requests, ways, tokens and blocks."""
    tokens, blocks, about = array("q"), array("q"), array("q")
    for a in asked:
        known = min(len(a.tokens), *(way.start for way in a.ways))
        about.extend((a.width, len(a.tokens), known, len(tokens), len(blocks)))
        tokens.extend(a.tokens[known:])
        blocks.extend(a.blocks)
    requests, depths = len(asked), len(asked[0].ways)
    for d in range(depths):
        for a in asked:
            about.extend(a.ways[d] if d < len(a.ways) else (0, 0, 0))
    before = len(about) + len(tokens) + 4 * requests + 1  # where chain.c writes each depth's tables
    return about + tokens + array("q", bytes(8 * (4 * requests + 1))) + blocks, (0, 5 * requests, len(about), before)


def pack_chain(depths: Sequence[Depth | None], block_size: int) -> Chain | None:
    """None where one of them has not all its parts compiled."""
    whole = [depth for depth in depths if depth is not None]
    return Chain(whole, block_size) if len(whole) == len(depths) else None
