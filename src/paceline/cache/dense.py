"""Attention without a cache: whole rows of packed documents at once, for training and as the plain reference."""

from __future__ import annotations

import torch
from torch import Tensor


class DenseAttend:
    """Causal attention inside each document. documents [B, S] int: equal numbers mark one document;
    tokens come as B*S rows. window: tokens that a token sees at most, itself among them; 0: all."""

    absorbed = False

    def __init__(self, documents: Tensor, window: int = 0) -> None:
        self.shape = documents.shape
        size = documents.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=documents.device).tril()
        near = causal.triu(1 - window) if window else causal
        self.hidden = ~((documents[:, None, :, None] == documents[:, None, None, :]) & near)  # [B, 1, S, S]

    def paged(self, layer: int) -> None:
        """There is no cache."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        batch, size = self.shape
        groups = q.shape[1] // k.shape[1]
        q, k, v = (x.view(batch, size, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = ((q * scale) @ k.transpose(-1, -2)).masked_fill_(self.hidden, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(0, 1)
