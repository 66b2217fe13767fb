"""Llama and the dense decoders built like it: Mistral, Qwen2, Qwen3. What tells them apart is a table.

Sources: the public config.json fields and tensor names of each family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.layers.attention import CacheSpec
from paceline.layers.basic import GatedMLP
from paceline.layers.gqa import GQA, GQASizes
from paceline.layers.rope import Rope, rope_parameters
from paceline.models.decoder import DecoderLayer, DecoderModel


@dataclass(frozen=True)
class Variant:
    """A bias of None: as the field `attention_bias` says. slides: `sliding_window` holds unless switched off."""

    qkv_bias: bool | None = None
    o_bias: bool | None = None
    qk_norm: bool = False
    slides: bool = False


MODEL_TYPES: Mapping[str, Variant] = {
    "llama": Variant(),
    "mistral": Variant(qkv_bias=False, o_bias=False, slides=True),
    "qwen2": Variant(qkv_bias=True, o_bias=False),
    "qwen3": Variant(qk_norm=True),
}


def build(config: ModelConfig) -> DecoderModel:
    """The target model, parameters not yet given values. Raises UserError for a configuration it would read wrongly."""
    variant = MODEL_TYPES[config.model_type]
    check(config, variant)
    eps = float(config.raw.get("rms_norm_eps", 1e-6))
    sizes = attention_sizes(config, variant, eps)
    rope = Rope(sizes.head_dim, rope_parameters(config.raw), config.max_position_embeddings)

    def layer(_: int) -> DecoderLayer:
        mlp = GatedMLP(config.hidden_size, config.raw["intermediate_size"])
        return DecoderLayer(GQA(sizes, rope), mlp, config.hidden_size, eps)

    cache = CacheSpec(config.num_hidden_layers, sizes.num_kv_heads, sizes.head_dim, sizes.head_dim)
    return DecoderModel(config, cache, rope, eps, layer)


def attention_sizes(config: ModelConfig, variant: Variant, eps: float) -> GQASizes:
    raw = config.raw
    heads = raw["num_attention_heads"]
    stated = bool(raw.get("attention_bias", False))
    return GQASizes(
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or config.hidden_size // heads,
        qkv_bias=stated if variant.qkv_bias is None else variant.qkv_bias,
        o_bias=stated if variant.o_bias is None else variant.o_bias,
        qk_norm=variant.qk_norm,
        eps=eps,
    )


def check(config: ModelConfig, variant: Variant) -> None:
    """Refuses what this file would compute wrongly rather than ignore it."""
    raw: Mapping[str, Any] = config.raw
    for name in ("num_attention_heads", "intermediate_size"):
        if not isinstance(raw.get(name), int):
            raise UserError(
                f"config.json: a {config.model_type} model needs {name} as a whole number, not {raw.get(name)!r}."
            )
    for name, value in {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0}.items():
        if raw.get(name, value) != value:
            raise UserError(
                f"config.json: {name} {raw[name]!r} is not supported for {config.model_type}; it must be {value!r}."
            )
    window = raw.get("sliding_window") if raw.get("use_sliding_window", variant.slides) else None
    if window is not None and window < config.max_position_embeddings:
        raise UserError(
            f"config.json: sliding_window {window} is not supported; set max_position_embeddings to {window}, "
            "up to which it changes nothing."
        )
