"""Attention layers. How keys are kept and read is an argument (`attend`); a layer only makes q, k and v."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from paceline.kernels import mla, native, pack_weight, packed_linear, rotate_and_norm
from paceline.kernels.pages import Pages
from paceline.layers.basic import Linear, RMSNorm
from paceline.layers.rope import Rope

FUSED_AT_MOST = 1 << 21  # numbers in a fused weight


@dataclass(frozen=True)
class CacheSpec:
    """What one token leaves behind in each layer: k [num_kv_heads, k_dim] and v [num_kv_heads, v_dim].

    latent: v is the first v_dim numbers of k (MLA), so that only k is kept. shared: so many numbers at the end of a key
    are the same in all heads, and kept once."""

    num_layers: int
    num_kv_heads: int
    k_dim: int
    v_dim: int
    latent: bool = False
    shared: int = 0

    @property
    def numbers_per_token(self) -> int:
        """What one token leaves behind in all layers."""
        of_a_head = self.k_dim - self.shared + (0 if self.latent else self.v_dim)
        return self.num_layers * (self.num_kv_heads * of_a_head + self.shared)


class Attend(Protocol):
    """Keeps this pass's keys and values and attends over all that a row may see.

    q [T, Hq, Dk], k [T, Hkv, Dk], v [T, Hkv, Dv] to [T, Hq, Dv]; Hq is a multiple of Hkv. `absorbed`: MLA should hand
    over latents (serving: the cache stays small) rather than expanded heads (training: fewer operations). `paged`:
    where the pass keeps what it makes, for code that writes and reads it itself; None where that is not to be."""

    absorbed: bool

    def paged(self, layer: int) -> mla.Paged | None: ...

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor: ...


@dataclass(frozen=True)
class MLASizes:
    hidden_size: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope: int
    rope: int
    v: int
    eps: float

    @property
    def few_heads(self) -> bool:
        """Whether all heads' keys and values are no more numbers than the latent that they are made of: then they are
        kept instead, for attention over them is fewer operations. Where nothing is compiled more heads cost more."""
        return self.num_heads * (self.nope + self.v) <= self.kv_lora_rank and native.library() is not None

    def cache(self, num_layers: int) -> CacheSpec:
        if self.few_heads:
            return CacheSpec(num_layers, self.num_heads, self.nope + self.rope, self.v, shared=self.rope)
        return CacheSpec(num_layers, 1, self.kv_lora_rank + self.rope, self.kv_lora_rank, latent=True)


class MLA(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, section 2.1). Keys and values of all heads are linear in one latent c:
    k_nope = W_uk c, v = W_uv c; the rotary key is shared by the heads.

    Absorbed: q_nope . (W_uk c) = (W_uk^T q_nope) . c, so attention runs on [c, k_rope] with one key head."""

    def __init__(self, sizes: MLASizes, rope: Rope, scale: float) -> None:
        super().__init__()
        s = self.sizes = sizes
        self.rope, self.scale = rope, scale
        self.few_heads = s.few_heads
        q_width = s.num_heads * (s.nope + s.rope)
        if s.q_lora_rank is None:
            self.q_proj = Linear(s.hidden_size, q_width)
        else:
            self.q_a_proj = Linear(s.hidden_size, s.q_lora_rank)
            self.q_a_layernorm = RMSNorm(s.q_lora_rank, s.eps)
            self.q_b_proj = Linear(s.q_lora_rank, q_width)
        self.kv_a_proj_with_mqa = Linear(s.hidden_size, s.kv_lora_rank + s.rope)
        self.kv_a_layernorm = RMSNorm(s.kv_lora_rank, s.eps)
        self.kv_b_proj = Linear(s.kv_lora_rank, s.num_heads * (s.nope + s.v))
        self.o_proj = Linear(s.num_heads * s.v, s.hidden_size)
        self._fused: tuple[Tensor, Tensor] | None = None

    def forward(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, hidden], cos and sin [T, 1, rope / 2] to [T, hidden]."""
        if self._fused is not None and attend.absorbed:
            return self.fused(layer, x, cos, sin, attend, *self._fused)
        s = self.sizes
        q = self.query(x).view(-1, s.num_heads, s.nope + s.rope)
        q_nope, q_rope = q.split((s.nope, s.rope), dim=-1)
        c, k_rope = self.kv_a_proj_with_mqa(x).split((s.kv_lora_rank, s.rope), dim=-1)
        c = self.kv_a_layernorm(c)
        q_rope = self.rope.rotate(q_rope, cos, sin)
        k_rope = self.rope.rotate(k_rope[:, None], cos, sin)
        heads = self.absorbed if attend.absorbed and not self.few_heads else self.expanded
        return self.o_proj(heads(layer, q_nope, q_rope, c, k_rope, attend))  # type: ignore[no-any-return]

    def query(self, x: Tensor) -> Tensor:
        if self.sizes.q_lora_rank is None:
            return self.q_proj(x)  # type: ignore[no-any-return]
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))  # type: ignore[no-any-return]

    def absorbed(self, layer: int, q_nope: Tensor, q_rope: Tensor, c: Tensor, k_rope: Tensor, attend: Attend) -> Tensor:
        w_uk, w_uv = self.up_projections()
        q_latent = torch.bmm(q_nope.transpose(0, 1), w_uk).transpose(0, 1)  # [T, H, kv_lora_rank]
        k = torch.cat((c[:, None], k_rope), dim=-1)
        mixed = attend(layer, torch.cat((q_latent, q_rope), dim=-1), k, c[:, None], self.scale)
        return torch.bmm(mixed.transpose(0, 1), w_uv.transpose(1, 2)).transpose(0, 1).flatten(1)

    def expanded(self, layer: int, q_nope: Tensor, q_rope: Tensor, c: Tensor, k_rope: Tensor, attend: Attend) -> Tensor:
        s = self.sizes
        k_nope, v = self.kv_b_proj(c).view(-1, s.num_heads, s.nope + s.v).split((s.nope, s.v), dim=-1)
        k = torch.cat((k_nope, k_rope.expand(-1, s.num_heads, -1)), dim=-1)
        return attend(layer, torch.cat((q_nope, q_rope), dim=-1), k, v, self.scale).flatten(1)

    def up_projections(self) -> tuple[Tensor, Tensor]:
        """W_uk [H, nope, kv_lora_rank] and W_uv [H, v, kv_lora_rank], views of `kv_b_proj`."""
        s = self.sizes
        w_uk, w_uv = self.kv_b_proj.weight.view(s.num_heads, s.nope + s.v, s.kv_lora_rank).split((s.nope, s.v), dim=1)
        return w_uk, w_uv

    def fused(
        self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, w_in: Tensor, w_out: Tensor
    ) -> Tensor:
        """`absorbed` in two products: one makes [latent, rotary] of each query head and of the key, one ends it all."""
        s = self.sizes
        made = packed_linear(x, w_in).view(-1, s.num_heads + 1, s.kv_lora_rank + s.rope)
        rotate_and_norm(made, cos, sin, self.kv_a_layernorm.weight, self.kv_a_layernorm.eps)
        mixed = attend(layer, made[:, :-1], made[:, -1:], made[:, -1:, : s.kv_lora_rank], 1.0)
        return packed_linear(mixed.flatten(1), w_out)

    @property
    def simple(self) -> bool:
        """Whether the queries are one product."""
        return self.rope.interleaved and self.sizes.q_lora_rank is None

    @property
    def plain(self) -> bool:
        """That, and the weights are numbers, not codes."""
        return self.simple and all(isinstance(x, Linear) for x in (self.q_proj, self.kv_a_proj_with_mqa, self.o_proj))

    def pack(self, pages: Pages) -> None:
        """Multiplies W_uk into the query projection and W_uv into the output, where that is small: on the CPU a product
        of few rows costs its call, not its size. Decided by the sizes alone, so that every pass takes the same way."""
        s = self.sizes
        fused_size = (s.num_heads + 1) * (s.kv_lora_rank + s.rope) * s.hidden_size
        if self.plain and not self.few_heads and fused_size <= FUSED_AT_MOST:
            w_in, w_out = (pack_weight(w) for w in self.fused_weights())
            self._fused = (w_in, w_out) if w_in is not None and w_out is not None else None

    def with_norms(self, norm: RMSNorm, next_norm: RMSNorm, pages: Pages, codes: bool = False) -> mla.HalfLayer | None:
        """norm, this, the sum and the norm behind it in one call, where heads are few. codes: as `pack_weight`."""
        s, latent_norm = self.sizes, self.kv_a_layernorm
        if not self.few_heads or not (self.simple if codes else self.plain) or norm.eps != next_norm.eps:
            return None
        root, eps = min(s.kv_lora_rank, s.hidden_size), (norm.eps, latent_norm.eps)
        shape = mla.Shape(s.hidden_size, s.num_heads, s.nope, s.rope, root, s.v, *eps, self.scale)
        if not mla.serves(shape, (norm.weight, next_norm.weight)):
            return None
        up = torch.cat([w.flatten(0, 1) for w in self.up_projections()])
        kept = mla.from_state(self.kv_a_proj_with_mqa.numbers(), s.rope, latent_norm.weight, up)
        queries, outputs = self.q_proj.numbers(), self.o_proj.numbers()
        w_in = torch.cat((queries, kept.to(queries.dtype)))
        return mla.pack(shape, mla.Weights(norm.weight, w_in, outputs, next_norm.weight), pages, codes)

    def fused_weights(self) -> tuple[Tensor, Tensor]:
        """in [(H + 1) * (rank + rope), hidden], with the scale in its queries; out [hidden, H * rank]. In float32."""
        s, dtype = self.sizes, self.o_proj.weight.dtype
        w_uk, w_uv = (w.to(torch.float32) for w in self.up_projections())
        queries = self.q_proj.weight.to(torch.float32).view(s.num_heads, s.nope + s.rope, -1)
        latent = w_uk.transpose(1, 2) @ queries[:, : s.nope]  # W_uk^T W_q of each head: [H, rank, hidden]
        heads = torch.cat((latent, queries[:, s.nope :]), dim=1).flatten(0, 1) * self.scale
        outputs = self.o_proj.weight.to(torch.float32).view(-1, s.num_heads, s.v).transpose(0, 1) @ w_uv
        w_in = torch.cat((heads, self.kv_a_proj_with_mqa.weight.to(torch.float32)))
        return w_in.to(dtype), outputs.transpose(0, 1).flatten(1).to(dtype)
