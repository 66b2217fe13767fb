"""DeepSeek-V3, R1, V3.1: latent attention, mixture of experts after the first dense layers, YaRN, MTP modules.

Source: DeepSeek-V3 technical report; field and tensor names of its public checkpoints.
"""

from __future__ import annotations

from paceline.config import ModelConfig
from paceline.models.decoder import DecoderModel
from paceline.models.latent import check, decoder_model, mtp_modules
from paceline.models.mtp import MTP

MODEL_TYPES = ("deepseek_v3",)


def build(config: ModelConfig) -> DecoderModel:
    """The target model, parameters not yet given values. Raises UserError for a configuration it would read wrongly."""
    check(config)
    return decoder_model(config)


def build_mtp(config: ModelConfig, target: DecoderModel, num_modules: int) -> MTP:
    """`num_modules` MTP modules on the target's embedding and head."""
    return mtp_modules(config, target, num_modules)
