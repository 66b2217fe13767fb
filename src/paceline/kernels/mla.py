"""The attention half of a decoder layer with latent attention and few heads, in one call of `mla.c`."""

from __future__ import annotations

import ctypes
from dataclasses import astuple, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import heads, latent, native
from paceline.kernels.linear import BLOCK, pack_weight


class Paged(NamedTuple):
    """Where a pass keeps what it makes: memory [slots of the pool, heads * (nope + v) + rope], keys, then their shared
    part, then values; slots [T]: its own rows'."""

    memory: Tensor
    slots: Tensor
    tables: latent.Tables
    block_size: int


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
        return 2 * self.hidden + self.heads * (2 * self.nope + self.rope + 2 * self.v) + 2 * self.rank + self.rope


class Weights(NamedTuple):
    """norm, next_norm [hidden]: before attention, and after the sum; latent_norm [rank]. w_in: q_proj's rows, then
    those of kv_a_proj_with_mqa; w_kv: kv_b_proj's that make keys, then those that make values; w_out: o_proj."""

    norm: Tensor
    w_in: Tensor
    latent_norm: Tensor
    w_kv: Tensor
    w_out: Tensor
    next_norm: Tensor


class _Layer(ctypes.Structure):
    """`MLA` of mla.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in Weights._fields),
        *((name, ctypes.c_long) for name in ("hidden", "heads", "nope", "rope", "rank", "v")),
        *((name, ctypes.c_float) for name in ("eps", "latent_eps", "scale")),
    )


class HalfLayer:
    """x + attention(norm(x)), and the norm of that. weights: as `pack` lays them out."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        self.shape, self.weights = shape, weights
        self._layer = _Layer(*(weight.data_ptr() for weight in weights), *astuple(shape))
        self._where, self._room = ctypes.addressof(self._layer), shape.room

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, paged: Paged) -> tuple[Tensor, Tensor]:
        """x [T, hidden], cos and sin [T, 1, rope / 2] contiguous to two [T, hidden]; writes the rows' keys and values
        to their slots. A row has the same bits among any others."""
        (rows, hidden), tables = x.shape, paged.tables
        total, normed = torch.empty(2, rows, hidden, dtype=x.dtype).unbind(0)
        threads, tile, scratch = heads.shared_work(tables, rows, self.shape.heads)
        room = torch.empty(rows * self._room, dtype=x.dtype)
        native.call(
            "mla", self._where, x.data_ptr(), total.data_ptr(), normed.data_ptr(), cos.data_ptr(), sin.data_ptr(),
            paged.memory.data_ptr(), paged.slots.data_ptr(), tables.numbers.data_ptr(), scratch.data_ptr(),
            room.data_ptr(), rows, len(tables.context), paged.block_size, tables.longest, tile, threads,
            torch.get_num_threads(),
        )  # fmt: skip
        return total, normed


def pack(shape: Shape, weights: Weights) -> HalfLayer | None:
    """None where the call is not for these sizes, or not for this machine: only bf16 on a CPU that multiplies it."""
    s, w = shape, weights
    here = hasattr(native.library(), "mla") and all(x.is_cpu and x.dtype == torch.bfloat16 for x in w)
    whole = all(size % BLOCK == 0 for size in (s.nope, s.rope, s.v, s.rank, s.hidden))
    if not here or not whole or s.rope > 2 * native.MAX_HALF_ROPE:
        return None
    return HalfLayer(shape, w._replace(w_in=_packed(w.w_in), w_kv=_packed(w.w_kv), w_out=_packed(w.w_out)))


def _packed(weight: Tensor) -> Tensor:
    packed = pack_weight(weight)
    assert packed is not None
    return packed
