"""The KV memory of one model: a flat array of slots a layer, cut into blocks by whoever hands them out."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.errors import UserError
from paceline.kernels import pages
from paceline.layers.attention import CacheSpec

# A context is read in views that may end up to this many slots behind its last token; those slots are masked.
SPARE_SLOTS = 64


class Pool:
    """memory [layers][slots, numbers of a token], one layer behind the other, and views of it: k [layers][slots, Hkv,
    k_dim] (without what heads share), shared [layers][slots, spec.shared], v [layers][slots, Hkv, v_dim] (of latents
    the first part of k). rooms: for one pass at a time to work in. Raises `UserError` when there is not that much."""

    def __init__(
        self, spec: CacheSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.spec, self.num_blocks, self.block_size, self.rooms = spec, num_blocks, block_size, pages.Rooms()
        slots, heads, own = num_blocks * block_size + SPARE_SLOTS, spec.num_kv_heads, spec.k_dim - spec.shared
        widths = (heads * own, spec.shared, 0 if spec.latent else heads * spec.v_dim)
        try:
            # Zeros, not empty: unwritten slots are masked, but 0 * NaN would still be NaN.
            memory = _zeros((spec.num_layers, slots, sum(widths)), dtype, torch.device(device))
        except (MemoryError, RuntimeError):  # all that torch says of too little memory
            raise UserError(
                f"There is no memory for {num_blocks} KV blocks of {block_size}; lower num_blocks."
            ) from None
        k, shared, v = memory.split(widths, dim=-1)
        self.memory, self.shared = list(memory.unbind(0)), list(shared.unbind(0))
        self.k = list(k.unflatten(-1, (heads, own)).unbind(0))
        self.v = [x[..., : spec.v_dim] for x in self.k] if spec.latent else list(v.unflatten(-1, (heads, -1)).unbind(0))

    def preallocate(self) -> None:
        """Takes all memory now, which comes page by page else as blocks are first used. For a pool that nobody used."""
        for memory in self.memory:
            memory.zero_()

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """slots [T] int64; k [T, Hkv, k_dim]; v [T, Hkv, v_dim] (not kept when latent: k holds it)."""
        own = self.k[layer].shape[-1]
        self.k[layer].index_copy_(0, slots, k[..., :own])
        if self.spec.shared:
            self.shared[layer].index_copy_(0, slots, k[:, 0, own:])
        if not self.spec.latent:
            self.v[layer].index_copy_(0, slots, v)

    def keys(self, layer: int, slots: slice | Tensor) -> Tensor:
        """Whole keys [n, Hkv, k_dim] of some slots."""
        own: Tensor = self.k[layer][slots]
        if not self.spec.shared:
            return own
        return torch.cat((own, self.shared[layer][slots][:, None].expand(-1, own.shape[1], -1)), dim=-1)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies slots [n] to slots [n] in every layer, as if at once (an accepted tree path becomes a chain)."""
        for memory in self.memory:
            memory[target] = memory[source]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return pages.zeros(shape, dtype) if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)
