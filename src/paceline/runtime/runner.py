"""A model and its KV memory: one call is one pass."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from paceline.batch import ForwardBatch
from paceline.cache.attend import PagedAttend
from paceline.cache.pool import Pool
from paceline.layers.attention import Attend


class Model(Protocol):
    """Target, draft model and MTP depth alike."""

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend, features: Tensor | None) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Runner:
    """Example: `hidden = runner(batch); logits = runner.logits(hidden[batch.take])`."""

    def __init__(self, model: Model, pool: Pool) -> None:
        self.model, self.pool = model, pool

    @torch.inference_mode()
    def __call__(self, batch: ForwardBatch, features: Tensor | None = None) -> Tensor:
        """The pass's states after the final norm [T, hidden]; its keys and values are in the pool afterwards.

        features [T, hidden]: what an MTP depth hears of the pass before it."""
        return self.model(batch.tokens, batch.positions, PagedAttend(self.pool, batch), features)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[L, hidden] to [L, vocab]."""
        return self.model.logits(hidden)
