"""MiMo-7B: Qwen2 with MTP modules of its own words, whose projection reads the hidden state before the embedding.

Sources: Xiaomi's modeling file, names of its public checkpoints, and its fork of vLLM for what transformers leaves out:
there the modules read the target's states before the final norm. (SGLang hands over the normed ones.)
"""

from __future__ import annotations

from paceline.config import ModelConfig
from paceline.models.decoder import DecoderModel
from paceline.models.grouped import QWEN2, cache_spec, check, decoder_layer, decoder_model, dense_mlp
from paceline.models.mtp import MTP, MTPDepth, MTPNames

MODEL_TYPES = ("mimo",)
MTP_NAMES = MTPNames(
    "model.mtp_layers.{depth}.",
    {
        "enorm": "token_layernorm",
        "hnorm": "hidden_layernorm",
        "eh_proj": "input_proj",
        "shared_head.norm": "final_layernorm",
    },
)


def build(config: ModelConfig) -> DecoderModel:
    """The target model, parameters not yet given values. Raises UserError for a configuration it would read wrongly."""
    check(config, QWEN2)
    return decoder_model(config, QWEN2, lambda _: dense_mlp(config), raw_features=True)


def build_mtp(config: ModelConfig, target: DecoderModel, num_modules: int) -> MTP:
    """`num_modules` MTP modules on the target's embedding and head."""
    blocks = [decoder_layer(config, QWEN2, target.rope, dense_mlp(config)) for _ in range(num_modules)]
    depths = [MTPDepth(d, block, target, hidden_first=True) for d, block in enumerate(blocks)]
    return MTP(depths, cache_spec(config, QWEN2, num_modules), config.num_hidden_layers, MTP_NAMES)
