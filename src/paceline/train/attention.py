"""Attention over packed documents that skips what no row may see: `DenseAttend`'s result for a fraction of its work.

Short documents leave most of a row's square empty. Queries go in blocks; a block's keys begin where the document of its
first query does. Made for the CPU, where many small products are cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.cache.dense import DenseAttend
from paceline.layers.attention import Attend

BLOCK = 128


@dataclass(frozen=True)
class Span:
    """Queries start..end of the flat batch and their keys first..end; hidden [end - start, end - first]."""

    first: int
    start: int
    end: int
    hidden: Tensor


class BlockAttend:
    """As `DenseAttend`, whose arguments these are."""

    absorbed = False

    def __init__(self, documents: Tensor, window: int = 0) -> None:
        size = documents.shape[1]
        window = window or size
        self.spans: list[Span] = []
        for r, row in enumerate(documents):
            for start in range(0, size, BLOCK):
                end = min(start + BLOCK, size)
                first = max(int((row[: start + 1] == row[start]).nonzero()[0]), start + 1 - window)
                behind = torch.arange(start, end)[:, None] - torch.arange(first, end)
                hidden = (row[start:end, None] != row[first:end]) | (behind < 0) | (behind >= window)
                self.spans.append(Span(r * size + first, r * size + start, r * size + end, hidden))

    def paged(self, layer: int) -> None:
        """There is no cache."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return _Blocks.apply(q, k, v, scale, self.spans)  # type: ignore[no-any-return, no-untyped-call]


class _Blocks(torch.autograd.Function):
    """Its own backward pass, because the keys of neighbouring blocks overlap: their gradients are added in place."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, spans: list[Span]) -> Tensor:
        q, k, v = ((x * f).transpose(0, 1).contiguous() for x, f in ((q, scale), (k, 1), (v, 1)))  # [H, T, D]
        out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=v.dtype, device=v.device)
        weights = []
        for s in spans:
            scores = torch.bmm(q[:, s.start : s.end], k[:, s.first : s.end].mT)
            weights.append(scores.masked_fill_(s.hidden, float("-inf")).softmax(-1))
            out[:, s.start : s.end] = torch.bmm(weights[-1], v[:, s.first : s.end])
        ctx.save_for_backward(q, k, v, *weights)
        ctx.scale, ctx.spans = scale, spans
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *weights = ctx.saved_tensors
        out_grad = grads[0].transpose(0, 1).contiguous()
        q_grad, k_grad, v_grad = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for s, w in zip(ctx.spans, weights, strict=True):
            queries, keys = slice(s.start, s.end), slice(s.first, s.end)
            g = out_grad[:, queries]
            v_grad[:, keys] += torch.bmm(w.mT, g)
            w_grad = torch.bmm(g, v[:, keys].mT)
            scores_grad = torch._softmax_backward_data(w_grad, w, -1, w.dtype)
            q_grad[:, queries] = torch.bmm(scores_grad, k[:, keys])
            k_grad[:, keys] += torch.bmm(scores_grad.mT, q[:, queries])
        return q_grad.mul_(ctx.scale).transpose(0, 1), k_grad.transpose(0, 1), v_grad.transpose(0, 1), None, None


def training_attend(documents: Tensor, window: int = 0) -> Attend:
    """The faster of the two on the documents' device."""
    return BlockAttend(documents, window) if documents.device.type == "cpu" else DenseAttend(documents, window)
