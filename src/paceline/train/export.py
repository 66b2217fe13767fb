"""The trained model as a Hugging Face directory: weights, configuration, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from paceline.checkpoint.writer import write_checkpoint
from paceline.config import ModelConfig, dtype_from_name
from paceline.tokenizer_training import SETTINGS, tokenizer_paths
from paceline.train.loss import Trainee

KEPT = "e_score_correction_bias"


def export(model: Trainee, config: ModelConfig, tokenizer_dir: Path, directory: Path, dtype: str | None = None) -> None:
    """Replaces `directory`. Tensors get `dtype`, or keep the model's, which config.json names; correction biases stay
    float32.

    Every MTP module repeats embedding and head, as in DeepSeek-V3's own checkpoints: other engines look there."""
    tensors = model.target.weights()
    if model.mtp is not None:
        tensors |= model.mtp.weights() | model.mtp.shared_weights()
    dtype = dtype or str(model.target.norm.weight.dtype).removeprefix("torch.")
    tensors = {name: t if name.endswith(KEPT) else t.to(dtype_from_name(dtype)) for name, t in tensors.items()}
    raw = config.to_dict() | {"dtype": dtype, "torch_dtype": dtype}  # the older name too, for other engines
    ids = {name: raw[name] for name in ("eos_token_id", "pad_token_id") if raw.get(name) is not None}
    files = tokenizer_files(tokenizer_dir, config.max_position_embeddings) | {"generation_config.json": _json(ids)}
    write_checkpoint(directory, tensors, raw, extra_files=files, overwrite=True)


def tokenizer_files(directory: Path, context: int) -> dict[str, bytes | str]:
    """Name to content; `context` is the longest text in tokens, which is the model's affair, not the tokenizer's."""
    files: dict[str, bytes | str] = {path.name: path.read_bytes() for path in tokenizer_paths(directory)}
    settings = json.loads(files.get(SETTINGS, b"{}"))
    return files | {SETTINGS: _json(settings | {"model_max_length": context})}


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
