"""The config.json of public checkpoints, as they are: each is read, and describes a model of the published size.

Models are laid out on the meta device, so nothing here has weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.models import build_model, build_mtp

# fmt: off
_FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
_DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "aux_loss_alpha": 0.001, "bos_token_id": 0,
    "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "pretraining_tp": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": _FP8, "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": True,
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1", "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}
_V31 = _DEEPSEEK | {"quantization_config": _FP8 | {"scale_fmt": "ue8m0"}, "transformers_version": "4.44.2"}
_GLM_AIR = {
    "architectures": ["Glm4MoeForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "pad_token_id": 151329,
    "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "partial_rotary_factor": 0.5, "initializer_range": 0.02, "intermediate_size": 10944,
    "max_position_embeddings": 131072, "model_type": "glm4_moe", "moe_intermediate_size": 1408, "norm_topk_prob": True,
    "num_attention_heads": 96, "n_group": 1, "topk_group": 1, "n_routed_experts": 128, "n_shared_experts": 1,
    "routed_scaling_factor": 1.0, "num_experts_per_tok": 8, "first_k_dense_replace": 1, "num_hidden_layers": 46,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 1000000,
    "num_nextn_predict_layers": 1, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0", "use_cache": True, "use_qk_norm": False, "vocab_size": 151552,
}
_GLM_45 = _GLM_AIR | {
    "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_routed_experts": 160,
    "routed_scaling_factor": 2.5, "first_k_dense_replace": 3, "num_hidden_layers": 92, "use_qk_norm": True,
}
_GLM_FLASH = {
    "architectures": ["Glm4MoeLiteForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "pad_token_id": 154820, "eos_token_id": [154820, 154827, 154829], "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 10240, "max_position_embeddings": 202752, "model_type": "glm4_moe_lite",
    "moe_intermediate_size": 1536, "topk_method": "noaux_tc", "norm_topk_prob": True, "num_attention_heads": 20,
    "n_group": 1, "topk_group": 1, "n_routed_experts": 64, "n_shared_experts": 1, "routed_scaling_factor": 1.8,
    "num_experts_per_tok": 4, "first_k_dense_replace": 1, "num_hidden_layers": 47, "num_key_value_heads": 20,
    "num_nextn_predict_layers": 1, "partial_rotary_factor": 1.0, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 1000000, "tie_word_embeddings": False, "dtype": "bfloat16", "transformers_version": "5.0.0rc0",
    "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256,
    "vocab_size": 154880,
}
_GLM_46 = _GLM_45 | {"max_position_embeddings": 202752, "transformers_version": "4.56.2"}
_MIMO = {
    "architectures": ["MiMoForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "bos_token_id": 151643,
    "auto_map": {"AutoConfig": "configuration_mimo.MiMoConfig"}, "eos_token_id": 151645, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
    "max_position_embeddings": 32768, "max_window_layers": 36, "model_type": "mimo", "num_attention_heads": 32,
    "num_hidden_layers": 36, "num_key_value_heads": 8, "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 640000, "sliding_window": 32768, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
    "vocab_size": 151680,
}
_QWEN3_30B = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960,
    "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}
_QWEN3_235B = _QWEN3_30B | {
    "hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 94, "moe_intermediate_size": 1536,
    "num_attention_heads": 64, "num_hidden_layers": 94,
}
# fmt: on


@dataclass(frozen=True)
class Public:
    """parameters: as the checkpoint's page counts them, MTP modules included (of DeepSeek's, without the block scales).
    repeats: copies of embedding and head among them."""

    raw: dict[str, Any]
    parameters: int
    repeats: int = 0


MODELS = {
    "DeepSeek-V3 and R1": Public(_DEEPSEEK, 684_489_845_504, repeats=1),
    "DeepSeek-V3.1": Public(_V31, 684_489_845_504, repeats=1),
    "GLM-4.5-Air": Public(_GLM_AIR, 110_468_824_832, repeats=1),
    "GLM-4.5": Public(_GLM_45, 358_337_791_296, repeats=1),
    "GLM-4.6": Public(_GLM_46, 356_785_898_816),
    "GLM-4.7-Flash": Public(_GLM_FLASH, 31_221_488_576),
    "MiMo-7B": Public(_MIMO, 7_833_409_536),
    "Qwen3-30B-A3B": Public(_QWEN3_30B, 30_532_122_624),
    "Qwen3-235B-A22B": Public(_QWEN3_235B, 235_093_634_560),
}


def count(weights: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_it_is_read_and_has_the_size_of_its_checkpoint(model: Public) -> None:
    config = ModelConfig.from_dict(model.raw)
    with torch.device("meta"):
        target = build_model(config)
        modules = [build_mtp(config, target)] if config.num_nextn_predict_layers else []
    assert config.max_position_embeddings >= 32768 and config.eos_token_ids
    whole = count(target.weights()) + sum(count(mtp.weights()) for mtp in modules)
    assert whole + model.repeats * sum(count(mtp.shared_weights()) for mtp in modules) == model.parameters


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("DeepSeek-V3 and R1", {"model_type": "deepseek_v32", "index_topk": 2048}, "'deepseek_v32' is not supported"),
        ("GLM-4.5-Air", {"model_type": "glm4v_moe"}, "known families: .*glm4_moe.*mimo.*qwen3_moe"),
        ("GLM-4.5-Air", {"partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5 must be above 0 and at most 1"),
        ("GLM-4.5-Air", {"scoring_func": "softmax"}, "scoring_func 'softmax' is not supported for glm4_moe"),
        ("GLM-4.5-Air", {"n_routed_experts": "128"}, "needs n_routed_experts as a whole number"),
        ("GLM-4.5-Air", {"topk_group": 2}, "of 1 groups"),
        ("GLM-4.7-Flash", {"mlp_layer_types": ["dense"] * 2 + ["sparse"] * 45}, "mlp_layer_types.*replace 1"),
        ("GLM-4.7-Flash", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ("DeepSeek-V3.1", {"n_group": 256, "topk_group": 64}, "from 64 of 256 groups"),
        ("MiMo-7B", {"num_key_value_heads": 5}, "num_attention_heads 32 must be a multiple of num_key_value_heads 5"),
        ("MiMo-7B", {"use_mrope": True}, "use_mrope True is not supported"),
        ("MiMo-7B", {"use_sliding_window": True, "sliding_window": 4096}, "sliding_window 4096 is not supported"),
        ("MiMo-7B", {"rope_scaling": {"type": "mrope"}}, "rope_type 'mrope'"),
        ("MiMo-7B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 must be 1 for mimo"),
        ("Qwen3-30B-A3B", {"num_experts": None}, "needs num_experts as a whole number"),
        ("Qwen3-30B-A3B", {"num_experts_per_tok": 200}, "200 experts a token cannot be chosen from 128"),
        ("Qwen3-30B-A3B", {"decoder_sparse_step": "x"}, "decoder_sparse_step"),
        ("Qwen3-30B-A3B", {"mlp_only_layers": 3}, "mlp_only_layers"),
        ("Qwen3-30B-A3B", {"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(model: str, changes: dict[str, Any], words: str) -> None:
    config = ModelConfig.from_dict(MODELS[model].raw | changes)
    with torch.device("meta"), pytest.raises(UserError, match=words):
        build_model(config)
