"""The trained model as a Hugging Face directory: weights, configuration, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from paceline.checkpoint.writer import write_checkpoint
from paceline.config import ModelConfig
from paceline.train.loss import Trainee

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export(model: Trainee, config: ModelConfig, tokenizer_dir: Path, directory: Path) -> None:
    """Replaces `directory`. Tensors keep the model's dtype; the routers' correction biases stay float32."""
    tensors = model.target.weights() | (model.mtp.weights() if model.mtp is not None else {})
    files: dict[str, bytes | str] = {
        name: (tokenizer_dir / name).read_bytes() for name in TOKENIZER_FILES if (tokenizer_dir / name).is_file()
    }
    raw = config.to_dict()
    ids = {name: raw[name] for name in ("eos_token_id", "pad_token_id") if raw.get(name) is not None}
    files["generation_config.json"] = json.dumps(ids, indent=2) + "\n"
    write_checkpoint(directory, tensors, raw, extra_files=files, overwrite=True)
