"""The plain parts: linear, embedding, norm and gated MLP.
Parameters have no values until something loads or draws them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.kernels import gated, pack_weight, packed_linear, rms_norm
from paceline.kernels.layer import Mixture
from paceline.kernels.moe import PackedExperts, gated_experts, pack_experts
from paceline.kernels.pages import Pages


class Linear(nn.Module):
    """y = x W^T (+ b). weight [out, in]; after `pack` it is laid out once for the CPU's bf16 products (less time, and
    where they go by pairs the same bits), when first it is asked for: in a layer that is one call that may be never."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self._packed: Tensor | None = None
        self._pages: Pages | None = None  # where it will be laid out

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed
        if packed is not None:
            return packed_linear(x, packed, self.bias)
        return F.linear(x, self.weight, self.bias)

    def numbers(self) -> Tensor:
        """The weight, whatever it is kept in."""
        return self.weight

    @property
    def packed(self) -> Tensor | None:
        """The weight as `packed_linear` reads it; None before `pack`, and where there is no such product."""
        self.lay_out()
        return self._packed

    def pack(self, pages: Pages) -> None:
        self._packed, self._pages = None, pages

    def lay_out(self) -> None:
        """What `packed` does first, once."""
        if self._pages is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            packed = pack_weight(self.weight)
            self._packed = None if packed is None else self._pages.keep(packed)
        self._pages = None


class Embedding(nn.Module):
    """weight [vocab, hidden]."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x); gate and up are one product.
    gate_up.weight [2 * intermediate, hidden]: gate rows first."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, 2 * intermediate_size)
        self.down = Linear(intermediate_size, hidden_size)
        self._compiled: PackedExperts | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._compiled is not None:  # as the layer in one call has it, bit for bit
            return gated_experts(x, None, 0, self._compiled)
        out: Tensor = self.down(gated(self.gate_up(x)))
        return out

    def mixture(self, pages: Pages, codes: bool = False) -> Mixture | None:
        """The same as experts, for a layer in one call: one that is everybody's. codes: as `pack_weight`."""
        parts = (self.gate_up, self.down)
        if any(part.bias is not None or not (codes or isinstance(part, Linear)) for part in parts):
            return None
        gate, up = self.gate_up.numbers().chunk(2)
        packed = pack_experts([gate], [up], [self.down.numbers()], pages, codes)
        if not codes:
            self._compiled = packed
        return None if packed is None else Mixture(packed)

    def weights(self) -> dict[str, Tensor]:
        named = prefixed("down_proj.", dict(self.down.named_parameters()))
        for kind, fused in self.gate_up.named_parameters():
            named[f"gate_proj.{kind}"], named[f"up_proj.{kind}"] = fused.chunk(2)
        return named


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under `prefix` + name."""
    return {prefix + name: tensor for name, tensor in weights.items()}
