"""Dense layers first, then mixtures of experts, in the config.json fields that DeepSeek-V3 brought and GLM-4 took."""

from __future__ import annotations

from torch import nn

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.layers.basic import GatedMLP
from paceline.layers.moe import MoE, MoESizes
from paceline.models.fields import need_values, need_whole


def check(config: ModelConfig) -> None:
    """Refuses what `mlp` would compute wrongly."""
    raw = config.raw
    need_whole(
        config, "intermediate_size", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
        "first_k_dense_replace",
    )  # fmt: skip
    need_values(
        config, {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "hidden_act": "silu", "moe_layer_freq": 1}
    )
    groups, kept, experts = raw.get("n_group") or 1, raw.get("topk_group") or 1, raw["n_routed_experts"]
    chosen = raw["num_experts_per_tok"]
    size = experts // groups
    # a group is judged by its two best experts
    if experts % groups or kept > groups or chosen > size * kept or (kept < groups and size < 2):
        raise UserError(
            f"config.json: {chosen} experts a token cannot be chosen from {kept} of {groups} groups "
            f"of {experts} experts; see num_experts_per_tok, topk_group, n_group and n_routed_experts."
        )


def mlp(config: ModelConfig, index: int) -> nn.Module:
    """The MLP of layer `index`; MTP modules count on from the last layer, so theirs are mixtures."""
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
