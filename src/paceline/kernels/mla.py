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
    """Sizes and constants of a half layer; eps is that of both norms, latent_eps that of the key's latent. root: how
    many numbers have the latent's mean square."""

    hidden: int
    heads: int
    nope: int
    rope: int
    root: int
    v: int
    eps: float
    latent_eps: float
    scale: float

    @property
    def room(self) -> int:
        """Numbers that mla.c needs for a row."""
        return 2 * self.hidden + self.heads * (2 * self.nope + self.rope + 2 * self.v) + self.root + self.rope


class Weights(NamedTuple):
    """norm, next_norm [hidden]: before attention, and after the sum. w_in: q_proj's rows, then those of `from_state`;
    w_out: o_proj."""

    norm: Tensor
    w_in: Tensor
    w_out: Tensor
    next_norm: Tensor


class _HalfLayer(ctypes.Structure):
    """`HalfLayer` of mla.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in Weights._fields),
        *((name, ctypes.c_long) for name in ("hidden", "heads", "nope", "rope", "root", "v", "codes")),
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


def from_state(down: Tensor, rope: int, norm: Tensor, up: Tensor) -> Tensor:
    """What makes, of a normed state x, all that a row leaves in the cache: [root + rope + n, hidden], in float32. down
    [rank + rope, hidden] makes the latent c and the rotary key, up [n, rank] keys and values of the normed latent:

        up (norm * c / rms(c)) = (up diag(norm) down) x / rms(c),     rms(c)^2 = mean((R x)^2) with Q R = down

    so that they are linear in x but for one number, whose root is no more numbers than x has: fewer to multiply than by
    way of the latent where that is longer than the state."""
    latent, rotary = down.to(torch.float32).split((down.shape[0] - rope, rope))
    root = torch.linalg.qr(latent, mode="r").R
    root *= (root.shape[0] / latent.shape[0]) ** 0.5
    return torch.cat((root, rotary, (up.to(torch.float32) * norm.to(torch.float32)) @ latent))


def serves(shape: Shape, norms: tuple[Tensor, Tensor]) -> bool:
    """Whether the call is for these sizes and this machine: only bf16 (or codes) on a CPU that multiplies it."""
    s = shape
    alike = all(x.is_cpu and x.dtype == torch.bfloat16 for x in norms)
    whole = all(size % BLOCK == 0 for size in (s.nope, s.rope, s.v, s.root, s.hidden))
    return hasattr(native.library(), "mla") and alike and whole and s.rope <= 2 * native.MAX_HALF_ROPE


def pack(shape: Shape, weights: Weights, pages: Pages, codes: bool = False) -> HalfLayer | None:
    """None where a weight cannot be laid out."""
    w_in, w_out = (pack_weight(x, codes) for x in (weights.w_in, weights.w_out))
    if w_in is None or w_out is None:
        return None
    return HalfLayer(shape, weights._replace(w_in=pages.keep(w_in), w_out=pages.keep(w_out)))
