"""How well a model knows a text: the mean of -log p over its tokens, by teacher forcing, as it serves."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from paceline.cache.dense import DenseAttend
from paceline.models.decoder import DecoderModel


@torch.inference_mode()
def mean_loss(model: DecoderModel, texts: Iterable[list[int]]) -> float:
    """In nats a token, over every token but each text's first; texts of token ids."""
    total, count = 0.0, 0
    for ids in texts:
        tokens = torch.tensor(ids, device=model.norm.weight.device)
        places = torch.arange(len(ids), device=tokens.device)
        hidden = model(tokens, places, DenseAttend(torch.zeros_like(tokens)[None]))
        logits = model.logits(hidden[:-1]).to(torch.float32)
        total += F.cross_entropy(logits, tokens[1:], reduction="sum").item()
        count += len(ids) - 1
    return total / count
