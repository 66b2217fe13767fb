"""Llama and the dense decoders built like it: Mistral, Qwen2, Qwen3. What tells them apart is a table."""

from __future__ import annotations

from collections.abc import Mapping

from paceline.config import ModelConfig
from paceline.models.decoder import DecoderModel
from paceline.models.grouped import QWEN2, QWEN3, Variant, check, decoder_model, dense_mlp

MODEL_TYPES: Mapping[str, Variant] = {
    "llama": Variant(),
    "mistral": Variant(qkv_bias=False, o_bias=False, slides=True),
    "qwen2": QWEN2,
    "qwen3": QWEN3,
}


def build(config: ModelConfig) -> DecoderModel:
    """The target model, parameters not yet given values. Raises UserError for a configuration it would read wrongly."""
    variant = MODEL_TYPES[config.model_type]
    check(config, variant)
    return decoder_model(config, variant, lambda _: dense_mlp(config))
