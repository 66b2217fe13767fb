"""What the families with grouped-query attention share. What tells their attention apart is a `Variant`.

Sources: the public config.json fields and tensor names of each family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.layers.attention import CacheSpec
from paceline.layers.basic import GatedMLP
from paceline.layers.gqa import GQA, GQASizes
from paceline.layers.rope import Rope, rope_parameters
from paceline.models.decoder import DecoderLayer, DecoderModel
from paceline.models.fields import need_values, need_whole, norm_eps


@dataclass(frozen=True)
class Variant:
    """None: as config.json says, in `attention_bias` (the biases) and `use_qk_norm`.

    slides: `sliding_window` holds unless switched off. rotary: the part of each head that is turned where
    `partial_rotary_factor` says nothing else; a family that turns whole heads always does."""

    qkv_bias: bool | None = None
    o_bias: bool | None = None
    qk_norm: bool | None = False
    slides: bool = False
    rotary: float = 1.0


QWEN2, QWEN3 = Variant(qkv_bias=True, o_bias=False), Variant(qk_norm=True)


def check(config: ModelConfig, variant: Variant) -> None:
    """Refuses what this file would compute wrongly rather than ignore it."""
    raw = config.raw
    need_whole(config, "num_attention_heads", "intermediate_size")
    need_values(config, {"hidden_act": "silu", "mlp_bias": False, "use_mrope": False})
    heads, shared = raw["num_attention_heads"], raw.get("num_key_value_heads") or raw["num_attention_heads"]
    if not isinstance(shared, int) or heads % shared:
        raise UserError(
            f"config.json: num_attention_heads {heads} must be a multiple of num_key_value_heads {shared!r}."
        )
    part = rotary_part(config, variant)
    if variant.rotary == 1.0 != part or not 0 < part <= 1:
        limits = "1" if variant.rotary == 1.0 else "above 0 and at most 1"
        raise UserError(f"config.json: partial_rotary_factor {part} must be {limits} for {config.model_type}.")
    window = raw.get("sliding_window") if raw.get("use_sliding_window", variant.slides) else None
    if window is not None and window < config.max_position_embeddings:
        raise UserError(
            f"config.json: sliding_window {window} is not supported; set max_position_embeddings to {window}, "
            "up to which it changes nothing."
        )


def rotary_part(config: ModelConfig, variant: Variant) -> float:
    return float(rope_parameters(config.raw).get("partial_rotary_factor", variant.rotary))


def attention_sizes(config: ModelConfig, variant: Variant) -> GQASizes:
    raw = config.raw
    heads = raw["num_attention_heads"]

    def stated(fixed: bool | None, name: str) -> bool:
        return bool(raw.get(name, False)) if fixed is None else fixed

    return GQASizes(
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or config.hidden_size // heads,
        qkv_bias=stated(variant.qkv_bias, "attention_bias"),
        o_bias=stated(variant.o_bias, "attention_bias"),
        qk_norm=stated(variant.qk_norm, "use_qk_norm"),
        eps=norm_eps(config),
    )


def decoder_layer(config: ModelConfig, variant: Variant, rope: Rope, mlp: nn.Module) -> DecoderLayer:
    return DecoderLayer(GQA(attention_sizes(config, variant), rope), mlp, config.hidden_size, norm_eps(config))


def decoder_model(
    config: ModelConfig, variant: Variant, mlp: Callable[[int], nn.Module], raw_features: bool = False
) -> DecoderModel:
    """The target model: `mlp` makes each layer's. raw_features: as `DecoderModel`."""
    rotary = int(attention_sizes(config, variant).head_dim * rotary_part(config, variant))
    rope = Rope(rotary, rope_parameters(config.raw), config.max_position_embeddings)

    def layer(index: int) -> DecoderLayer:
        return decoder_layer(config, variant, rope, mlp(index))

    cache = cache_spec(config, variant, config.num_hidden_layers)
    return DecoderModel(config, cache, rope, norm_eps(config), layer, raw_features)


def cache_spec(config: ModelConfig, variant: Variant, num_layers: int) -> CacheSpec:
    sizes = attention_sizes(config, variant)
    return CacheSpec(num_layers, sizes.num_kv_heads, sizes.head_dim, sizes.head_dim)


def dense_mlp(config: ModelConfig) -> GatedMLP:
    return GatedMLP(config.hidden_size, config.raw["intermediate_size"])
