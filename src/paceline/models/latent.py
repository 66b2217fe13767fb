"""What the families with latent attention and DeepSeek-V3's experts share: DeepSeek-V3 itself, and GLM-4.7-Flash.

Source: DeepSeek-V3 technical report; field and tensor names of its public checkpoints.
"""

from __future__ import annotations

from typing import Any

from paceline.config import ModelConfig
from paceline.layers.attention import MLA, MLASizes
from paceline.layers.rope import Rope, rope_parameters, yarn_mscale
from paceline.models import experts
from paceline.models.decoder import DecoderLayer, DecoderModel
from paceline.models.fields import need_values, need_whole, norm_eps
from paceline.models.mtp import MTP, MTPDepth


def check(config: ModelConfig) -> None:
    """Refuses a configuration that this file would read wrongly."""
    need_whole(config, "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    need_values(config, {"attention_bias": False, "partial_rotary_factor": 1.0})
    experts.check(config)


def make_rope(raw: Any) -> Rope:
    interleaved = bool(raw.get("rope_interleave", True))
    return Rope(raw["qk_rope_head_dim"], rope_parameters(raw), raw["max_position_embeddings"], interleaved)


def attention_scale(raw: Any) -> float:
    """1 / sqrt(nope + rope), times mscale squared when YaRN stretches the context."""
    scale = (raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"]) ** -0.5
    rope = rope_parameters(raw)
    if rope["rope_type"] == "yarn" and rope.get("mscale_all_dim"):
        scale *= yarn_mscale(float(rope["factor"]), float(rope["mscale_all_dim"])) ** 2
    return float(scale)


def mla_sizes(config: ModelConfig) -> MLASizes:
    raw = config.raw
    return MLASizes(
        hidden_size=config.hidden_size,
        num_heads=raw["num_attention_heads"],
        q_lora_rank=raw.get("q_lora_rank"),
        kv_lora_rank=raw["kv_lora_rank"],
        nope=raw["qk_nope_head_dim"],
        rope=raw["qk_rope_head_dim"],
        v=raw["v_head_dim"],
        eps=1e-6,  # the public model leaves the inner norms at their default, whatever rms_norm_eps says
    )


def decoder_layer(config: ModelConfig, index: int, rope: Rope) -> DecoderLayer:
    attention = MLA(mla_sizes(config), rope, attention_scale(config.raw))
    return DecoderLayer(attention, experts.mlp(config, index), config.hidden_size, norm_eps(config))


def decoder_model(config: ModelConfig) -> DecoderModel:
    """The target model, parameters not yet given values."""
    rope = make_rope(config.raw)

    def layer(index: int) -> DecoderLayer:
        return decoder_layer(config, index, rope)

    return DecoderModel(config, mla_sizes(config).cache(config.num_hidden_layers), rope, norm_eps(config), layer)


def mtp_modules(config: ModelConfig, target: DecoderModel, num_modules: int, shares: bool = True) -> MTP:
    """`num_modules` MTP modules on the target. shares: as `MTPDepth`."""
    blocks = [decoder_layer(config, config.num_hidden_layers + d, target.rope) for d in range(num_modules)]
    depths = [MTPDepth(d, block, target, shares=shares) for d, block in enumerate(blocks)]
    return MTP(depths, mla_sizes(config).cache(num_modules), config.num_hidden_layers)
