"""MTP modules taught by their target, which stays as it is: sum over d of weight_d * KL(p || q_d).

p is what the target says at place i + d, q_d what depth d says at place i of the same token t_{i+d+1}. Drafts are
accepted by what the target says, not by what a text says; and on the target's own words modules meet what they will
meet (Zhou et al. 2023, "DistillSpec").
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.train.loss import CHUNK, Trainee, goals
from paceline.train.packing import Batch


def divergences(model: Trainee, batch: Batch, weights: list[float]) -> tuple[Tensor, list[float]]:
    """The scalar to differentiate, sum over depths of weights[d] * (sum of depth d's divergences), in nats; and plain
    sums: the target's cross entropy, then each depth's divergence."""
    goal, states = goals(batch, model.num_depths), model.hidden(batch)
    head = model.target.lm_head.weight
    drafts, teachers, row_weights = [], [], []
    for d, places in enumerate(goal.places[1:], 1):
        drafts.append(states[d][places])
        teachers.append(states[0][places + d])  # the same document, so the same row
        row_weights.append(torch.full((len(places),), weights[d], device=head.device))
    loss, each = linear_divergence(torch.cat(drafts), torch.cat(teachers), head, torch.cat(row_weights))
    own = _cross_entropy(states[0][goal.places[0]], head, goal.targets[0])
    return loss, [own, *(part.sum().item() for part in each.split(goal.counts[1:]))]


def linear_divergence(rows: Tensor, teachers: Tensor, head: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """sum of weights * KL(softmax(teachers head^T) || softmax(rows head^T)), rows and teachers [n, hidden], head
    [vocab, hidden]; and each row's own [n], not weighted. Only `rows` gets a gradient, made in the same pass, CHUNK
    rows at a time:  d KL / d logits = q - p."""
    return _LinearDivergence.apply(rows, teachers, head, weights)  # type: ignore[no-any-return, no-untyped-call]


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, teachers: Tensor, head: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        each, rows_grad = torch.empty(len(rows), device=rows.device), torch.empty_like(rows)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            log_p, log_q = (_log_softmax(x[part], head) for x in (teachers, rows))
            p = log_p.exp()
            each[part] = (p * log_p.sub_(log_q)).sum(-1)
            rows_grad[part] = log_q.exp_().sub_(p).mul_(weights[part, None]).to(rows.dtype) @ head
        ctx.save_for_backward(rows_grad)
        ctx.mark_non_differentiable(each)
        return (each * weights).sum(), each

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (rows_grad,) = ctx.saved_tensors
        return rows_grad * grads[0].to(rows_grad.dtype), None, None, None


@torch.no_grad()
def _cross_entropy(rows: Tensor, head: Tensor, targets: Tensor) -> float:
    parts = zip(rows.split(CHUNK), targets.split(CHUNK), strict=True)
    return sum(F.nll_loss(_log_softmax(part, head), right, reduction="sum").item() for part, right in parts)


def _log_softmax(rows: Tensor, head: Tensor) -> Tensor:
    return torch.log_softmax((rows @ head.t()).to(torch.float32), dim=-1)
