"""GLM-4.7-Flash: DeepSeek-V3's layers, and MTP modules with an embedding and a head of their own.

Source: the public config.json fields and tensor names.
"""

from __future__ import annotations

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.models.decoder import DecoderModel
from paceline.models.latent import check, decoder_model, mtp_modules
from paceline.models.mtp import MTP

MODEL_TYPES = ("glm4_moe_lite",)


def build(config: ModelConfig) -> DecoderModel:
    """The target model, parameters not yet given values. Raises UserError for a configuration it would read wrongly."""
    check(config)
    layers, dense = config.num_hidden_layers, config.raw["first_k_dense_replace"]
    kinds = config.raw.get("mlp_layer_types") or []
    if kinds and kinds[:layers] != ["dense"] * dense + ["sparse"] * (layers - dense):
        raise UserError(
            f"config.json: mlp_layer_types is not supported for {config.model_type} unless it says what "
            f"first_k_dense_replace {dense} does."
        )
    return decoder_model(config)


def build_mtp(config: ModelConfig, target: DecoderModel, num_modules: int) -> MTP:
    """`num_modules` MTP modules, each with its own embedding and head."""
    return mtp_modules(config, target, num_modules, shares=False)
