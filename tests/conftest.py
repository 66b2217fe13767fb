"""A tiny DeepSeek-V3 checkpoint with random weights, two MTP modules and a tokenizer: all the model that tests need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from paceline.checkpoint.writer import write_checkpoint
from paceline.config import ModelConfig
from paceline.models import build_model, build_mtp

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LINES = [
    "the quick brown fox jumps over the lazy dog",
    "how many words are in this list",
    "one two three four five six",
]

# What turns `tiny_config` into another family with MTP modules.
MTP_FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {},
    "glm4_moe": dict(model_type="glm4_moe", num_key_value_heads=2, head_dim=32, use_qk_norm=True, attention_bias=True),
    "glm4_moe_lite": dict(model_type="glm4_moe_lite"),
    "mimo": dict(model_type="mimo", num_key_value_heads=2, head_dim=32),
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A DeepSeek-V3 config.json with every part that the family has, as small as it gets."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 64,  # products of fewer than 4096 numbers leave oneDNN, and with it row invariance
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 8,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
    } | changes


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Checkpoint names to values, the same for the same seed. Wide enough that greedy text varies with the context."""
    generator = torch.Generator().manual_seed(seed)
    target = build_model(config)
    named = target.weights() | (build_mtp(config, target).weights() if config.num_nextn_predict_layers else {})
    drawn = {}
    for name, view in named.items():
        noise = torch.randn(view.shape, generator=generator)
        drawn[name] = 1 + 0.1 * noise if "norm" in name else 0.15 * noise
        drawn[name] = drawn[name].to(torch.float32 if name.endswith("e_score_correction_bias") else config.dtype)
    return drawn


def tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


def write_tiny(directory: Path, **changes: Any) -> Path:
    """The whole checkpoint directory."""
    config = ModelConfig.from_dict(tiny_config(**changes))
    settings = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "chat_template": TEMPLATE}
    files = {"tokenizer.json": tiny_tokenizer().to_str(), "tokenizer_config.json": json.dumps(settings)}
    return write_checkpoint(directory, random_weights(config), config.to_dict(), extra_files=files)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny shapes only lose time to threads."""
    torch.set_num_threads(1)
