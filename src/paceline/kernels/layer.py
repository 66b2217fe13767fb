"""A whole decoder layer, a stack of them, or an MTP module around one, over a paged cache, in one call of `layer.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels import native
from paceline.kernels.mla import HalfLayer, Paged
from paceline.kernels.moe import PackedExperts

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


class Mixture(NamedTuple):
    """What follows attention: `top` of the experts that `router` [E, hidden] and `bias` [E] choose, as `route` says,
    and those that are everybody's. One gated MLP has no router."""

    experts: PackedExperts
    router: Tensor | None = None
    bias: Tensor | None = None
    top: int = 0
    normalise: bool = False
    scaling: float = 1.0


class Join(NamedTuple):
    """What lies around a module's layer: the embedding, the norms of token and state, eh_proj packed as the layer's
    products are, the last norm; cos and sin of all places [2, places, rope / 2]."""

    table: Tensor
    token_norm: Tensor
    state_norm: Tensor
    join: Tensor
    norm: Tensor
    angles: Tensor
    states_first: bool
    eps: float


class Ends(NamedTuple):
    """What lies around a stack of layers: the embedding, the last norm if it belongs to it, and its eps; cos and sin
    of all places [2, places, rope / 2]."""

    table: Tensor
    norm: Tensor | None
    eps: float
    angles: Tensor


class _Layer(ctypes.Structure):
    """`Layer` of layer.c."""

    _fields_ = (
        *((name, _POINTER) for name in ("attention", "router", "bias", "gate_up", "down")),
        *((name, _LONG) for name in ("hidden", "experts", "all", "top", "width", "normalise", "codes")),
        ("scaling", _FLOAT),
    )


class _Module(ctypes.Structure):
    """`Module` of layer.c."""

    _fields_ = (
        *((name, _POINTER) for name in ("layer", "table", "token_norm", "state_norm", "join", "norm", "cos", "sin")),
        *((name, _LONG) for name in ("places", "half", "states_first")),
        ("eps", _FLOAT),
    )


class _Stack(ctypes.Structure):
    """`Stack` of layer.c."""

    _fields_ = (
        *((name, _POINTER) for name in ("layers", "table", "norm", "cos", "sin")),
        *((name, _LONG) for name in ("count", "hidden", "places", "half")),
        ("eps", _FLOAT),
    )


class PackedLayer:
    """x + attention(norm(x)), then that + mixture(norm(that))."""

    def __init__(self, half: HalfLayer, mixture: Mixture) -> None:
        self.half, self.mixture, self.hidden = half, mixture, half.shape.hidden
        (gate_up, down), router, bias, top, normalise, scaling = mixture
        everyone, width, experts = len(gate_up), 16 * gate_up.shape[1], 0 if router is None else len(router)
        pointers = (None if x is None else x.data_ptr() for x in (router, bias, gate_up, down))
        sizes = (self.hidden, experts, everyone, top, width, normalise, half.codes)
        self.struct = _Layer(half.where, *pointers, *sizes, scaling)
        self.where = ctypes.addressof(self.struct)
        pairs = top + everyone - experts  # of an expert and a row that chose it
        self.once = 4 * (everyone + 1)
        self.room = 4 * (self.hidden + experts + pairs) + 2 * (self.hidden + pairs * width + half.shape.room)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, paged: Paged) -> Tensor:
        """x [T, hidden], cos and sin [T, 1, rope / 2] contiguous to [T, hidden], or only the rows that the pass wants;
        writes the rows' keys and values to their slots. A row has the same bits among any others."""
        out = x.new_empty(paged.all_layers.outputs, self.hidden)
        room = paged.all_layers.room.of(x.shape[0] * self.room + self.once)
        pointers = (tensor.data_ptr() for tensor in (paged.memory, x, cos, sin, out))
        native.call("decoder_layer", self.where, paged.all_layers.where, *pointers, room)
        return out


class PackedStack:
    """norm(layers(embedding)), all layers in one call."""

    def __init__(self, layers: Sequence[PackedLayer], ends: Ends) -> None:
        self.layers, self.ends, self.hidden = layers, ends, layers[0].hidden
        (table, norm, eps, angles), (_, places, half) = ends, ends.angles.shape
        self._wheres = (ctypes.c_void_p * len(layers))(*(layer.where for layer in layers))
        pointers = (None if x is None else x.data_ptr() for x in (table, norm, angles[0], angles[1]))
        sizes = len(layers), self.hidden, places, half
        self.struct = _Stack(ctypes.addressof(self._wheres), *pointers, *sizes, eps)
        self.where = ctypes.addressof(self.struct)
        self.once = max(layer.once for layer in layers)
        self.room = max(layer.room for layer in layers) + 2 * 4 * half + 2 * 2 * self.hidden

    def __call__(self, tokens: Tensor, positions: Tensor, first: Paged) -> Tensor:
        """tokens, positions [T] to [T, hidden]; as `PackedLayer`. first: the first layer's part of the cache, behind
        which lie those of the others."""
        rows = tokens.shape[0]
        out = torch.empty(rows, self.hidden, dtype=torch.bfloat16)
        room = first.all_layers.room.of(rows * self.room + self.once)
        pointers = (tensor.data_ptr() for tensor in (first.memory, tokens, positions, out))
        native.call("decoder_stack", self.where, first.all_layers.where, *pointers, room, first.memory.numel())
        return out


def pack_stack(layers: Sequence[PackedLayer | None], ends: Ends) -> PackedStack | None:
    """None where one of them is no call of its own, or has neighbours of another kind."""
    whole = [layer for layer in layers if layer is not None and not layer.half.codes]
    plain = [ends.table] if ends.norm is None else [ends.table, ends.norm]
    alike = all(x.dtype == torch.bfloat16 for x in plain)
    return PackedStack(whole, ends) if alike and len(whole) == len(layers) else None


class PackedModule:
    """norm(layer(join(concat(norm(embedding), norm(state)))))."""

    def __init__(self, layer: PackedLayer, around: Join) -> None:
        self.layer, self.around = layer, around
        _, places, half = around.angles.shape
        pointers = (x.data_ptr() for x in (*around[:5], around.angles[0], around.angles[1]))
        self.struct = _Module(layer.where, *pointers, places, half, around.states_first, around.eps)
        self.where = ctypes.addressof(self.struct)
        self.room = layer.room + 2 * 4 * half + 2 * 4 * layer.hidden

    def __call__(self, tokens: Tensor, positions: Tensor, states: Tensor, paged: Paged) -> Tensor:
        """tokens, positions [T], states [T, hidden] to [T, hidden]; as `PackedLayer`."""
        states = states.contiguous()
        out = states.new_empty(paged.all_layers.outputs, self.layer.hidden)
        room = paged.all_layers.room.of(states.shape[0] * self.room + self.layer.once)
        pointers = (tensor.data_ptr() for tensor in (paged.memory, tokens, positions, states, out))
        native.call("mtp_module", self.where, paged.all_layers.where, *pointers, room)
        return out


def pack_module(layer: PackedLayer, around: Join) -> PackedModule | None:
    """None where a part is kept in another dtype than the layer's."""
    join = torch.int8 if layer.half.codes else torch.bfloat16
    wanted = (torch.bfloat16,) * 3 + (join, torch.bfloat16)
    alike = all(x.dtype == dtype for x, dtype in zip(around[:5], wanted, strict=True))
    return PackedModule(layer, around) if alike else None
