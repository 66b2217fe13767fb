"""The KV memory of one model: a flat array of slots a layer, cut into blocks by whoever hands them out."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.errors import UserError
from paceline.layers.attention import CacheSpec

# A context is read in views that may end up to this many slots behind its last token; those slots are masked.
SPARE_SLOTS = 64


class Pool:
    """k [layers][slots, Hkv, k_dim] and v [layers][slots, Hkv, v_dim] (latent caches keep k only;
    v is its first part). Raises `UserError` when there is not that much memory."""

    def __init__(
        self, spec: CacheSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.spec, self.num_blocks, self.block_size = spec, num_blocks, block_size
        slots = num_blocks * block_size + SPARE_SLOTS
        shape = (spec.num_layers, slots, spec.num_kv_heads)
        try:
            # Zeros, not empty: unwritten slots are masked, but 0 * NaN would still be NaN.
            self.k = list(torch.zeros(*shape, spec.k_dim, dtype=dtype, device=device).unbind(0))
            if spec.latent:
                self.v = [k[..., : spec.v_dim] for k in self.k]
            else:
                self.v = list(torch.zeros(*shape, spec.v_dim, dtype=dtype, device=device).unbind(0))
        except RuntimeError:  # all that torch says of too little memory
            raise UserError(
                f"There is no memory for {num_blocks} KV blocks of {block_size}; lower num_blocks."
            ) from None

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """slots [T] int64; k [T, Hkv, k_dim]; v [T, Hkv, v_dim] (not kept when latent: k holds it)."""
        self.k[layer].index_copy_(0, slots, k)
        if not self.spec.latent:
            self.v[layer].index_copy_(0, slots, v)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies slots [n] to slots [n] in every layer, as if at once (an accepted tree path becomes a chain)."""
        for k, v in zip(self.k, self.v, strict=True):
            k[target] = k[source]
            if not self.spec.latent:
                v[target] = v[source]
