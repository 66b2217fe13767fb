"""The model that a benchmark is about: its weights, or, behind a server, only its tokenizer and its context."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paceline.bench.record import model_facts
from paceline.checkpoint.resolve import resolve_model
from paceline.config import ModelConfig
from paceline.loaded import Loaded
from paceline.tokenizer import Tokenizer


@dataclass(frozen=True)
class Subject:
    """loaded: None when somebody else has the weights. dtype: that of the weights, as stored where not loaded."""

    path: Path
    name: str
    tokenizer: Tokenizer
    context: int
    dtype: torch.dtype
    loaded: Loaded | None = None

    @staticmethod
    def served(model: str | None) -> Subject:
        """Raises `UserError` for a model without config.json or tokenizer."""
        path = resolve_model(model)
        config = ModelConfig.from_dir(path)
        return Subject(path, _name(model, path), Tokenizer.from_dir(path), config.max_position_embeddings, config.dtype)

    @staticmethod
    def here(
        model: str | None, dtype: str | None, device: str | None, quantization: str | None, threads: int | None
    ) -> Subject:
        """Raises `UserError` for a bad checkpoint."""
        if threads is not None:
            torch.set_num_threads(threads)
        path = resolve_model(model)
        loaded = Loaded.from_dir(path, dtype, device, quantization)
        context = loaded.target.config.max_position_embeddings
        return Subject(path, _name(model, path), loaded.tokenizer, context, loaded.target.norm.weight.dtype, loaded)

    def facts(self, quantization: str | None) -> dict[str, Any]:
        """For the record."""
        return model_facts(self.path, self.name, str(self.dtype).removeprefix("torch."), quantization)


def _name(model: str | None, path: Path) -> str:
    return Path(model).name if model else path.name
