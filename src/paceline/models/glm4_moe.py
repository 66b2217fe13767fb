"""GLM-4.5, 4.5-Air, 4.6: grouped-query attention that turns half of each head, DeepSeek-V3's experts and MTP modules.

Sources: the public config.json fields and tensor names of each. 4.5 repeats embedding and head in its MTP module, 4.6
does not.
"""

from __future__ import annotations

from paceline.config import ModelConfig
from paceline.models import experts, grouped
from paceline.models.decoder import DecoderModel
from paceline.models.grouped import Variant
from paceline.models.mtp import MTP, MTPDepth

MODEL_TYPES = ("glm4_moe",)

_VARIANT = Variant(o_bias=False, qk_norm=None, rotary=0.5)


def build(config: ModelConfig) -> DecoderModel:
    """The target model, parameters not yet given values. Raises UserError for a configuration it would read wrongly."""
    grouped.check(config, _VARIANT)
    experts.check(config)
    return grouped.decoder_model(config, _VARIANT, lambda index: experts.mlp(config, index))


def build_mtp(config: ModelConfig, target: DecoderModel, num_modules: int) -> MTP:
    """`num_modules` MTP modules on the target's embedding and head."""
    first = config.num_hidden_layers
    blocks = [
        grouped.decoder_layer(config, _VARIANT, target.rope, experts.mlp(config, first + d)) for d in range(num_modules)
    ]
    depths = [MTPDepth(d, block, target) for d, block in enumerate(blocks)]
    return MTP(depths, grouped.cache_spec(config, _VARIANT, num_modules), first)
