"""What every decoder family shares: embedding, a stack of layers, a final norm, a head.
A family only says how a layer is made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from paceline.config import ModelConfig
from paceline.formats import Format
from paceline.kernels.layer import Ends, PackedLayer, PackedStack, pack_stack
from paceline.kernels.mla import HalfLayer
from paceline.kernels.pages import Pages
from paceline.layers.attention import MLA, Attend, CacheSpec
from paceline.layers.basic import Embedding, GatedMLP, Linear, RMSNorm, prefixed
from paceline.layers.moe import MoE
from paceline.layers.rope import Rope


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Its parts have the names of the checkpoint."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm = RMSNorm(hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(hidden_size, eps)
        self._half: HalfLayer | None = None
        self.whole: PackedLayer | None = None

    def forward(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, hidden], cos and sin [T, 1, rotary / 2] to [T, hidden]; attends as `layer`."""
        if self.whole is not None and (paged := attend.paged(layer)) is not None:
            return self.whole(x, cos, sin, paged)
        x, normed = self.attended(layer, x, cos, sin, attend)
        return x + self.mlp(normed)  # type: ignore[no-any-return]

    def attended(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """x + attention(norm(x)), and the norm of that."""
        if self._half is not None and (paged := attend.paged(layer)) is not None:
            return self._half(x, cos, sin, paged)
        x = x + self.self_attn(layer, self.input_layernorm(x), cos, sin, attend)
        return x, self.post_attention_layernorm(x)

    def pack(self, pages: Pages) -> None:
        """After its parts."""
        self._half = self._attention(pages)
        self.whole = self._around(self._half, pages)

    def as_codes(self, pages: Pages) -> PackedLayer | None:
        """The whole layer in int8, see `pack_weight`; None where it is no call of its own."""
        return self._around(self._attention(pages, codes=True), pages, codes=True)

    def _attention(self, pages: Pages, codes: bool = False) -> HalfLayer | None:
        norms = self.input_layernorm, self.post_attention_layernorm
        return self.self_attn.with_norms(*norms, pages, codes) if isinstance(self.self_attn, MLA) else None

    def _around(self, half: HalfLayer | None, pages: Pages, codes: bool = False) -> PackedLayer | None:
        mixture = self.mlp.mixture(pages, codes) if half and isinstance(self.mlp, GatedMLP | MoE) else None
        return PackedLayer(half, mixture) if half and mixture else None

    def weights(self) -> dict[str, Tensor]:
        named = {
            name + ".weight": getattr(self, name).weight for name in ("input_layernorm", "post_attention_layernorm")
        }
        for part in ("self_attn", "mlp"):
            named.update(prefixed(f"{part}.", weights_of(getattr(self, part))))
        return named


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own checkpoint map if it has one (stacked or fused tensors), else its parameters by their names."""
    own = getattr(module, "weights", None)
    return own() if own is not None else dict(module.named_parameters())


class DecoderModel(nn.Module):
    """A target model of any family: what a family passes in is its layers, its rotary positions and its cache.

    `cache`: what a token leaves behind. raw_features: the family's MTP modules read the states before the final norm,
    so that the norm belongs to the head. `form`: what most weights are kept in, None for plain numbers. Parameters
    have no values before `runtime.build` loads them."""

    def __init__(
        self,
        config: ModelConfig,
        cache: CacheSpec,
        rope: Rope,
        eps: float,
        layer: Callable[[int], DecoderLayer],
        raw_features: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.cache, self.rope, self.raw_features = config, cache, rope, raw_features
        self.form: Format | None = None
        self._whole: PackedStack | None = None
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([layer(i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.tied = bool(config.raw.get("tie_word_embeddings", False))
        if self.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, features: Tensor | None = None) -> Tensor:
        """tokens, positions [T] to the states that `logits` and MTP modules read [T, hidden]: after the final norm,
        unless `raw_features`. `features` is for MTP depths; unused here."""
        if self._whole is not None and (paged := attend.paged(0)) is not None:
            return self._whole(tokens, positions, paged)
        cos, sin = self.rope(positions)
        x = self.embed_tokens(tokens)
        for i, layer in enumerate(self.layers):
            x = layer(i, x, cos, sin, attend)
        return x if self.raw_features else self.norm(x)  # type: ignore[no-any-return]

    def normed(self, hidden: Tensor) -> Tensor:
        """What `forward` returns to what the head reads, [L, hidden]."""
        return self.norm(hidden) if self.raw_features else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """What `forward` returns [L, hidden] to [L, vocab], in the model's dtype."""
        return self.lm_head.forward(self.normed(hidden))

    @property
    def compiled(self) -> tuple[PackedStack, tuple[Tensor, Tensor | None]] | None:
        """From tokens to states, and the head with its bias, each as one call reads them; None where one is no such."""
        head = self.lm_head.packed if isinstance(self.lm_head, Linear) else None
        if self._whole is None or head is None or head.is_mkldnn or self.raw_features:
            return None
        return self._whole, (head, self.lm_head.bias)

    def weights(self) -> dict[str, Tensor]:
        """Checkpoint name to a view of the parameter: loading copies in, export reads out. A tied head has no name."""
        named: dict[str, Tensor] = {
            "model.embed_tokens.weight": self.embed_tokens.weight,
            "model.norm.weight": self.norm.weight,
        }
        if not self.tied:
            named.update(prefixed("lm_head.", dict(self.lm_head.named_parameters())))
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            named.update(prefixed(f"model.layers.{i}.", layer.weights()))
        return named

    def pack(self) -> None:
        """Call it after loading; as the function `pack`."""
        pack(self)
        norm = None if self.raw_features else self.norm.weight
        ends = Ends(self.embed_tokens.weight, norm, self.norm.eps, self.rope.table(self.norm.weight.device))
        self._whole = pack_stack([layer.whole for layer in self.layers], ends)  # type: ignore[misc]


def pack(model: nn.Module) -> None:
    """Lays every weight out once for the CPU; call it after loading.
    Packed copies follow no later change of the weights. What a layer in one call has packed is not packed for its parts
    as well before somebody asks for them (trees do)."""
    pages, modules = Pages(), list(model.modules())
    with torch.no_grad():
        for module in reversed(modules):  # parts first
            packs = getattr(module, "pack", None)
            if module is not model and callable(packs):
                packs(pages)
    whole = [layer for layer in modules if isinstance(layer, DecoderLayer) and layer.whole is not None]
    later = {part for layer in whole for part in layer.modules()}
    for module in modules:
        if isinstance(module, Linear) and module not in later:
            module.lay_out()  # now, not in the first pass
