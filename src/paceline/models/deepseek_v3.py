"""DeepSeek-V3, R1, V3.1: latent attention, mixture of experts after the first dense layers, YaRN, MTP modules.

Source: DeepSeek-V3 technical report; field and tensor names of its public checkpoints.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.layers.attention import MLA, CacheSpec, MLASizes
from paceline.layers.basic import GatedMLP
from paceline.layers.moe import MoE, MoESizes
from paceline.layers.rope import Rope, rope_parameters, yarn_mscale
from paceline.models.decoder import DecoderLayer, DecoderModel
from paceline.models.mtp import MTP, MTPDepth

MODEL_TYPES = ("deepseek_v3",)

_REQUIRED = (
    "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size",
    "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "first_k_dense_replace",
)  # fmt: skip
_FIXED = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "hidden_act": "silu", "moe_layer_freq": 1}


def build(config: ModelConfig) -> DecoderModel:
    """The target model, parameters not yet given values."""
    raw = config.raw
    check(raw)
    rope = make_rope(raw)

    def layer(index: int) -> DecoderLayer:
        return decoder_layer(config, index, rope)

    return DecoderModel(config, cache_spec(raw, config.num_hidden_layers), rope, norm_eps(raw), layer)


def build_mtp(config: ModelConfig, target: DecoderModel, num_modules: int) -> MTP:
    """`num_modules` MTP modules on the target's embedding and head."""
    raw, first, rope = config.raw, config.num_hidden_layers, target.rope
    eps = norm_eps(raw)
    depths = [
        MTPDepth(d, decoder_layer(config, first + d, rope), rope, target.embed_tokens, target.lm_head, eps)
        for d in range(num_modules)
    ]
    return MTP(depths, cache_spec(raw, num_modules), first)


def check(raw: Any) -> None:
    """Refuses a configuration that this file would read wrongly."""
    for name in _REQUIRED:
        if not isinstance(raw.get(name), int):
            raise UserError(f"config.json: a deepseek_v3 model needs {name} as a whole number, not {raw.get(name)!r}.")
    for name, value in _FIXED.items():
        if raw.get(name, value) != value:
            raise UserError(
                f"config.json: {name} {raw[name]!r} is not supported for deepseek_v3; it must be {value!r}."
            )
    groups, kept, experts = raw.get("n_group") or 1, raw.get("topk_group") or 1, raw["n_routed_experts"]
    chosen = raw["num_experts_per_tok"]
    if experts % groups or kept > groups or chosen > experts // groups * kept:
        raise UserError(
            f"config.json: {chosen} experts a token cannot be chosen from {kept} of {groups} groups "
            f"of {experts} experts; see num_experts_per_tok, topk_group, n_group and n_routed_experts."
        )
    if raw.get("attention_bias"):
        raise UserError("config.json: attention_bias true is not supported for deepseek_v3.")


def norm_eps(raw: Any) -> float:
    return float(raw.get("rms_norm_eps", 1e-6))


def cache_spec(raw: Any, num_layers: int) -> CacheSpec:
    rank = raw["kv_lora_rank"]
    return CacheSpec(num_layers, 1, rank + raw["qk_rope_head_dim"], rank, latent=True)


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


def decoder_layer(config: ModelConfig, index: int, rope: Rope) -> DecoderLayer:
    raw, eps = config.raw, norm_eps(config.raw)
    sizes = MLASizes(
        hidden_size=config.hidden_size,
        num_heads=raw["num_attention_heads"],
        q_lora_rank=raw.get("q_lora_rank"),
        kv_lora_rank=raw["kv_lora_rank"],
        nope=raw["qk_nope_head_dim"],
        rope=raw["qk_rope_head_dim"],
        v=raw["v_head_dim"],
        eps=1e-6,  # the public model leaves the inner norms at their default, whatever rms_norm_eps says
    )
    return DecoderLayer(MLA(sizes, rope, attention_scale(raw)), mlp(config, index), config.hidden_size, eps)


def mlp(config: ModelConfig, index: int) -> nn.Module:
    raw = config.raw
    if index < raw["first_k_dense_replace"]:
        return GatedMLP(config.hidden_size, raw["intermediate_size"])
    return MoE(
        MoESizes(
            hidden_size=config.hidden_size,
            intermediate_size=raw["moe_intermediate_size"],
            num_experts=raw["n_routed_experts"],
            top_k=raw["num_experts_per_tok"],
            num_groups=raw.get("n_group") or 1,
            top_groups=raw.get("topk_group") or 1,
            num_shared=raw.get("n_shared_experts") or 0,
            normalise=bool(raw.get("norm_topk_prob", True)),
            scaling=float(raw.get("routed_scaling_factor", 1.0)),
        )
    )
