"""Qwen3-MoE: Qwen3's attention and mixtures of experts with a softmax router and no shared experts. No MTP modules.

Source: the public config.json fields and tensor names of Qwen3-30B-A3B and Qwen3-235B-A22B.
"""

from __future__ import annotations

from torch import nn

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.layers.moe import MoE, MoESizes
from paceline.models.decoder import DecoderModel
from paceline.models.fields import need_values, need_whole
from paceline.models.grouped import QWEN3, check, decoder_model, dense_mlp

MODEL_TYPES = ("qwen3_moe",)


def build(config: ModelConfig) -> DecoderModel:
    """The target model, parameters not yet given values. Raises UserError for a configuration it would read wrongly."""
    check(config, QWEN3)
    check_experts(config)
    return decoder_model(config, QWEN3, lambda index: mlp(config, index))


def check_experts(config: ModelConfig) -> None:
    """Refuses what `mlp` would compute wrongly."""
    raw = config.raw
    need_whole(config, _experts_field(config), "num_experts_per_tok", "moe_intermediate_size")
    need_values(config, {"shared_expert_intermediate_size": 0})
    experts, chosen = raw[_experts_field(config)], raw["num_experts_per_tok"]
    if not 1 <= chosen <= experts:
        raise UserError(
            f"config.json: {chosen} experts a token cannot be chosen from {experts}; "
            "see num_experts_per_tok and num_experts."
        )
    if not isinstance(raw.get("decoder_sparse_step", 1), int) or not isinstance(raw.get("mlp_only_layers") or [], list):
        raise UserError("config.json: decoder_sparse_step must be a whole number and mlp_only_layers a list of layers.")


def _experts_field(config: ModelConfig) -> str:
    """The public checkpoints say num_experts; transformers 5 saves the same number under another name."""
    return "num_local_experts" if "num_local_experts" in config.raw else "num_experts"


def mlp(config: ModelConfig, index: int) -> nn.Module:
    """Every `decoder_sparse_step`th layer is a mixture, but for those in `mlp_only_layers`."""
    raw = config.raw
    step = raw.get("decoder_sparse_step") or 1
    if (index + 1) % step or index in (raw.get("mlp_only_layers") or ()):
        return dense_mlp(config)
    return MoE(
        MoESizes(
            hidden_size=config.hidden_size,
            intermediate_size=raw["moe_intermediate_size"],
            num_experts=raw[_experts_field(config)],
            top_k=raw["num_experts_per_tok"],
            num_groups=1,
            top_groups=1,
            num_shared=0,
            normalise=bool(raw.get("norm_topk_prob", False)),
            scaling=1.0,
            scoring="softmax",
        )
    )
