"""Tiny random references: transformers models of every family, saved as checkpoints that ours must read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

transformers.utils.logging.disable_progress_bar()

VOCAB, HIDDEN = 61, 32

_DENSE = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, sliding_window=None,
)  # fmt: skip
_DEEPSEEK = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=4, n_shared_experts=2, n_routed_experts=8, num_experts_per_tok=3,
    n_group=4, topk_group=2, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=12, qk_rope_head_dim=8,
    v_head_dim=12, qk_nope_head_dim=16, routed_scaling_factor=2.5, max_position_embeddings=256,
    num_nextn_predict_layers=0,
)  # fmt: skip
_GLM = _DENSE | dict(
    moe_intermediate_size=24, n_shared_experts=2, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
    first_k_dense_replace=1, routed_scaling_factor=2.5, head_dim=16, use_qk_norm=True, attention_bias=True,
    num_nextn_predict_layers=0,
)  # fmt: skip
_QWEN3_MOE = _DENSE | dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True)
_LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
_YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=8.0, original_max_position_embeddings=32)

# name -> what differs from the family's base; the name begins with the model_type
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied, biases, wide heads": dict(tie_word_embeddings=True, attention_bias=True, head_dim=16),
    "llama one key head, linear": dict(
        num_key_value_heads=1, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=4.0)
    ),
    "llama all key heads, llama3": dict(num_key_value_heads=4, rope_parameters=_LLAMA3),
    "mistral": {},
    "qwen2": {},
    "qwen2 yarn, tied": dict(rope_parameters=_YARN, tie_word_embeddings=True),
    "qwen3": {},
    "qwen3 biases, wide heads": dict(attention_bias=True, head_dim=16),
    "deepseek_v3": {},
    "deepseek_v3 plain queries, one group": dict(q_lora_rank=None, n_group=1, topk_group=1),
    "deepseek_v3 unnormalised, one shared": dict(norm_topk_prob=False, n_shared_experts=1, first_k_dense_replace=2),
    "deepseek_v3 few heads": dict(kv_lora_rank=128, q_lora_rank=None),
    "deepseek_v3 yarn": dict(rope_parameters=_YARN | dict(mscale=1.0, mscale_all_dim=1.0, beta_fast=32, beta_slow=1)),
    "deepseek_v3 yarn, other mscale": dict(rope_parameters=_YARN | dict(mscale=1.0, mscale_all_dim=0.7)),
    "deepseek_v3 half rotation": dict(rope_interleave=False),
    "glm4_moe": {},
    "glm4_moe air": dict(use_qk_norm=False, n_group=1, topk_group=1, n_shared_experts=1, routed_scaling_factor=1.0),
    "glm4_moe quarter rotation, no biases": dict(partial_rotary_factor=0.25, attention_bias=False),
    "glm4_moe yarn": dict(rope_parameters=_YARN | dict(partial_rotary_factor=0.5)),
    "glm4_moe_lite": {},
    "mimo": {},
    "mimo tied, yarn": dict(tie_word_embeddings=True, rope_parameters=_YARN),
    "qwen3_moe": {},
    "qwen3_moe unnormalised, wide heads": dict(norm_topk_prob=False, head_dim=16),
    "qwen3_moe every second layer, one dense": dict(decoder_sparse_step=2, num_hidden_layers=4, mlp_only_layers=[3]),
}
_BASES = {"deepseek_v3": _DEEPSEEK, "glm4_moe": _GLM, "glm4_moe_lite": _DEEPSEEK, "qwen3_moe": _QWEN3_MOE}


class MiMoConfig(transformers.Qwen2Config):
    model_type = "mimo"


class MiMoForCausalLM(transformers.Qwen2ForCausalLM):
    """transformers has no MiMo; its target is Qwen2's, as in the modeling file that comes with the weights."""

    config_class = MiMoConfig


transformers.AutoConfig.register("mimo", MiMoConfig)
transformers.AutoModelForCausalLM.register(MiMoConfig, MiMoForCausalLM)


@dataclass(frozen=True)
class Words:
    """Where a family keeps MTP module d, its words for what DeepSeek calls enorm, hnorm, eh_proj and shared_head.norm,
    and what else it does its own way: the projection reads the hidden state first, the first module reads the target's
    state before the final norm, each module has its own embedding and head."""

    where: str = "model.layers.{layer}."
    enorm: str = "enorm"
    hnorm: str = "hnorm"
    eh_proj: str = "eh_proj"
    norm: str = "shared_head.norm"
    hidden_first: bool = False
    raw_features: bool = False
    embed: str = ""
    head: str = ""


# Xiaomi's fork of vLLM: models/mimo.py and models/mimo_mtp.py
_MIMO = Words(
    "model.mtp_layers.{depth}.", "token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm",
    hidden_first=True, raw_features=True,
)  # fmt: skip
_WORDS = {"mimo": _MIMO, "glm4_moe_lite": Words(embed="embed_tokens", head="shared_head.head")}


@dataclass
class Reference:
    """A transformers model in float32 and where it is saved. `mtp`: of each MTP module, the tensors that no decoder
    layer has, by DeepSeek's words."""

    model: Any
    directory: Path
    mtp: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def words(self) -> Words:
        return _WORDS.get(self.model.config.model_type, Words())

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """tokens [S] to [S, vocab]."""
        found: Tensor = self.model(tokens[None], use_cache=False).logits[0]
        return found


def make_reference(name: str, directory: Path) -> Reference:
    reference = Reference(_random_model(name, {}), directory)
    reference.model.save_pretrained(directory)
    return reference


def make_mtp_reference(name: str, directory: Path, num_modules: int) -> Reference:
    """A reference whose last `num_modules` layers are the blocks of MTP modules, as public checkpoints name them."""
    main = _DEEPSEEK["num_hidden_layers"]
    reference = Reference(_random_model(name, {"num_hidden_layers": main + num_modules}), directory)
    reference.model.save_pretrained(directory)
    shapes = {"enorm": (HIDDEN,), "hnorm": (HIDDEN,), "norm": (HIDDEN,), "eh_proj": (HIDDEN, 2 * HIDDEN)}
    shapes |= {part: (VOCAB, HIDDEN) for part in ("embed", "head") if getattr(reference.words, part)}
    tensors = load_file(directory / "model.safetensors")
    for depth in range(num_modules):
        drawn = {part: torch.randn(shape) * 0.2 + (len(shape) == 1) for part, shape in shapes.items()}
        reference.mtp.append(drawn)
        old, new = f"model.layers.{main + depth}.", reference.words.where.format(layer=main + depth, depth=depth)
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        tensors |= {f"{new}{getattr(reference.words, part)}.weight": tensor for part, tensor in drawn.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    edit_config(directory, num_hidden_layers=main, num_nextn_predict_layers=num_modules)
    return reference


def edit_tensors(directory: Path, changes: dict[str, Tensor | None]) -> None:
    """Add or replace tensors of a saved checkpoint; None removes one."""
    tensors = load_file(directory / "model.safetensors") | changes
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory: Path, without: str = "", **changes: Any) -> None:
    """Set fields of a saved config.json, and remove the one named `without`."""
    path = directory / "config.json"
    raw = json.loads(path.read_text()) | changes
    raw.pop(without, None)
    path.write_text(json.dumps(raw))


def classic_words(directory: Path) -> None:
    """The same configuration in the words of the public checkpoints: rope_theta, rope_scaling with `type`,
    partial_rotary_factor beside them, num_experts."""
    raw = json.loads((directory / "config.json").read_text())
    rope = raw["rope_parameters"]
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    beside = {"partial_rotary_factor": rope.pop("partial_rotary_factor")} if "partial_rotary_factor" in rope else {}
    if raw["model_type"] == "qwen3_moe":
        beside["num_experts"] = raw["num_local_experts"]
        edit_config(directory, without="num_local_experts")
    scaling = None if kind == "default" else {**rope, "type": kind}
    edit_config(directory, without="rope_parameters", rope_theta=theta, rope_scaling=scaling, **beside)


def _random_model(name: str, more: dict[str, Any]) -> Any:
    """Weights large enough that a wrong scale, norm, bias or rotation shows in the logits."""
    torch.manual_seed(len(name))
    model_type = name.split()[0]
    base = _BASES.get(model_type, _DENSE)
    config = transformers.AutoConfig.for_model(model_type, **(base | CASES[name] | more))
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter_name, tensor in model.named_parameters():
            tensor.normal_(std=0.2).add_(1.0 if "norm" in parameter_name and tensor.dim() == 1 else 0.0)
        for buffer_name, tensor in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                tensor.uniform_(-0.3, 0.3)
    return model
