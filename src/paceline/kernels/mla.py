"""The attention half of a decoder layer with latent attention and few heads, in one call of `mla.c`."""

from __future__ import annotations

import ctypes
from dataclasses import astuple, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import heads, latent, native
from paceline.kernels.linear import BLOCK, pack_weight
from paceline.kernels.pages import Pages, Rooms


class _Pass(ctypes.Structure):
    """`Pass` of native.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("slots", "numbers", "scratch", "wanted", "index")),
        *((name, ctypes.c_long) for name in ("rows", "requests", "block_size", "longest", "window", "tile")),
        ("threads", ctypes.c_int),
    )


class Pass:
    """What all layers of a pass share: the slots [T] of its rows, and where what they attend to is.

    rooms: for its layers to work in, one after the other. window: places that a row sees at most, its own included; 0:
    all. wanted: the pass over the rows of which there are outputs, if
    not of all, and index [.. < T]: which they are. Of the others only keys and values are kept."""

    def __init__(
        self,
        slots: Tensor,
        tables: latent.Tables,
        block_size: int,
        rooms: Rooms,
        window: int = 0,
        wanted: Pass | None = None,
        index: Tensor | None = None,
    ) -> None:
        rows = slots.shape[0]
        threads, tile = torch.get_num_threads(), heads.rows_in_tile(tables, rows)
        scratch = None if wanted is not None else rooms.scratch.of(heads.scratch_bytes(tables.longest, threads))
        self.held, self.room = (slots, tables, wanted, index), rooms.layers  # as long as `where` points to them
        self.outputs: int = rows if wanted is None else wanted.outputs
        chosen = (None, None) if wanted is None or index is None else (wanted.where, index.data_ptr())
        pointers = slots.data_ptr(), tables.numbers.data_ptr(), scratch, *chosen
        sizes = rows, len(tables.context), block_size, tables.longest, window, tile
        self._struct = _Pass(*pointers, *sizes, threads)
        self.where: int = ctypes.addressof(self._struct)


class Paged(NamedTuple):
    """A layer's cache in a pass: memory [slots of the pool, heads * (nope + v) + rope], keys, then their shared part,
    then values."""

    memory: Tensor
    all_layers: Pass


@dataclass(frozen=True)
class Shape:
    """Sizes and constants of a half layer; eps is that of both norms, latent_eps that of the key's latent."""

    hidden: int
    heads: int
    nope: int
    rope: int
    rank: int
    v: int
    eps: float
    latent_eps: float
    scale: float

    @property
    def room(self) -> int:
        """Numbers that mla.c needs for a row."""
        return 2 * self.hidden + self.heads * (self.nope + self.rope + self.v) + 2 * self.rank + self.rope


class Weights(NamedTuple):
    """norm, next_norm [hidden]: before attention, and after the sum; latent_norm [rank]. w_in: q_proj's rows, then
    those of kv_a_proj_with_mqa; w_kv: kv_b_proj's that make keys, then those that make values; w_out: o_proj."""

    norm: Tensor
    w_in: Tensor
    latent_norm: Tensor
    w_kv: Tensor
    w_out: Tensor
    next_norm: Tensor


class _HalfLayer(ctypes.Structure):
    """`HalfLayer` of mla.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in Weights._fields),
        *((name, ctypes.c_long) for name in ("hidden", "heads", "nope", "rope", "rank", "v", "codes")),
        *((name, ctypes.c_float) for name in ("eps", "latent_eps", "scale")),
    )


class HalfLayer:
    """x + attention(norm(x)), and the norm of that. weights: as `pack` lays them out."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        self.shape, self.weights = shape, weights
        self.codes = weights.w_in.dtype == torch.int8
        sizes, constants = astuple(shape)[:6], astuple(shape)[6:]
        self._struct = _HalfLayer(*(weight.data_ptr() for weight in weights), *sizes, self.codes, *constants)
        self.where, self._room = ctypes.addressof(self._struct), shape.room

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, paged: Paged) -> tuple[Tensor, Tensor]:
        """x [T, hidden], cos and sin [T, 1, rope / 2] contiguous to two [T, hidden], or only the rows that the pass
        wants; writes the rows' keys and values to their slots. A row has the same bits among any others."""
        total, normed = x.new_empty(2, paged.all_layers.outputs, self.shape.hidden).unbind(0)
        room = paged.all_layers.room.of(2 * x.shape[0] * self._room)
        pointers = (tensor.data_ptr() for tensor in (paged.memory, x, cos, sin, total, normed))
        native.call("mla", self.where, paged.all_layers.where, *pointers, room)
        return total, normed


def pack(shape: Shape, weights: Weights, pages: Pages, codes: bool = False) -> HalfLayer | None:
    """None where the call is not for these sizes, or not for this machine: only bf16 (or codes) on a CPU that
    multiplies it."""
    s, w = shape, weights
    norms = all(x.is_cpu and x.dtype == torch.bfloat16 for x in (w.norm, w.latent_norm, w.next_norm))
    whole = all(size % BLOCK == 0 for size in (s.nope, s.rope, s.v, s.rank, s.hidden))
    if not hasattr(native.library(), "mla") or not norms or not whole or s.rope > 2 * native.MAX_HALF_ROPE:
        return None
    packed = [part for x in (w.w_in, w.w_kv, w.w_out) if (part := pack_weight(x, codes)) is not None]
    if len(packed) < 3:
        return None
    w_in, w_kv, w_out = (pages.keep(part) for part in packed)
    return HalfLayer(shape, w._replace(w_in=w_in, w_kv=w_kv, w_out=w_out))
