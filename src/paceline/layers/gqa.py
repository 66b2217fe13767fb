"""Grouped-query attention as in Llama: fewer key heads than query heads, rotary positions, q, k, v in one product.
The rotation turns as many numbers of a head as `rope` has: all of them, or the first ones (GLM-4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paceline.layers.attention import Attend
from paceline.layers.basic import Linear, RMSNorm, prefixed
from paceline.layers.rope import Rope


@dataclass(frozen=True)
class GQASizes:
    """qk_norm: RMSNorm over each head of q and k before the rotation (Qwen3, GLM-4.5)."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    eps: float


class GQA(nn.Module):
    """Query head h attends with key head h // (num_heads / num_kv_heads) (Ainslie et al. 2023).

    qkv.weight [(num_heads + 2 num_kv_heads) * head_dim, hidden]: q rows first, then k, then v."""

    def __init__(self, sizes: GQASizes, rope: Rope) -> None:
        super().__init__()
        s = self.sizes = sizes
        self.rope, self.scale = rope, s.head_dim**-0.5
        self.widths = tuple(heads * s.head_dim for heads in (s.num_heads, s.num_kv_heads, s.num_kv_heads))
        self.qkv = Linear(s.hidden_size, sum(self.widths), bias=s.qkv_bias)
        self.o_proj = Linear(self.widths[0], s.hidden_size, bias=s.o_bias)
        self.q_norm = RMSNorm(s.head_dim, s.eps) if s.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(s.head_dim, s.eps) if s.qk_norm else nn.Identity()

    def forward(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, hidden] to [T, hidden]."""
        q, k, v = (part.unflatten(-1, (-1, self.sizes.head_dim)) for part in self.qkv(x).split(self.widths, dim=-1))
        q = self.rope.rotate(self.q_norm(q), cos, sin)
        k = self.rope.rotate(self.k_norm(k), cos, sin)
        return self.o_proj(attend(layer, q, k, v, self.scale).flatten(1))  # type: ignore[no-any-return]

    def weights(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for kind, fused in self.qkv.named_parameters():
            parts = zip("qkv", torch.split(fused, list(self.widths)), strict=True)
            named.update({f"{name}_proj.{kind}": part for name, part in parts})
        for name in ("o_proj", "q_norm", "k_norm"):
            named.update(prefixed(f"{name}.", dict(getattr(self, name).named_parameters())))
        return named
