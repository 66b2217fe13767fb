"""The training loss: main cross entropy + lambda / D * sum of the depths' cross entropies (DeepSeek-V3, section 2.2.2).

Teacher forcing on a causal chain: depth d at place i reads the output of depth d-1 at place i (the target's state for
d = 1) and the true token t_{i+d}, and predicts t_{i+d+1}.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.models.decoder import DecoderModel
from paceline.models.mtp import MTP
from paceline.train.attention import training_attend
from paceline.train.packing import Batch

CHUNK = 512  # rows whose logits exist at a time


class Trainee(nn.Module):
    """What is trained: the target and, unless the configuration has none, its MTP modules. draft_window: tokens that a
    token of a module sees at most, as when drafting; 0: all."""

    def __init__(self, target: DecoderModel, mtp: MTP | None, draft_window: int = 0) -> None:
        super().__init__()
        self.target, self.mtp, self.draft_window = target, mtp, draft_window

    @property
    def num_depths(self) -> int:
        return len(self.mtp.depths) if self.mtp is not None else 0

    def freeze_target(self) -> None:
        """From now on only the modules learn; embedding and head, which they share, are the target's."""
        self.target.requires_grad_(False)

    def learning(self) -> Iterator[nn.Module]:
        """The modules whose weights change."""
        frozen = set(self.target.modules()) if not self.target.lm_head.weight.requires_grad else set()
        return (module for module in self.modules() if module not in frozen)

    def hidden(self, batch: Batch, detach: bool = False) -> list[Tensor]:
        """The states of the target and of each depth that the head reads, [B*T, hidden] each.
        `detach`: the depths do not teach the target."""
        tokens, positions, attend = batch.tokens.flatten(), batch.positions.flatten(), training_attend(batch.documents)
        features = self.target(tokens, positions, attend)
        states = [self.target.normed(features)]
        features = features.detach() if detach else features
        attend = training_attend(batch.documents, self.draft_window) if self.draft_window else attend
        for d, depth in enumerate(self.mtp.depths if self.mtp is not None else [], 1):
            features = depth(ahead(batch.tokens, d).flatten(), positions, attend, features)
            states.append(features)
        return states


def ahead(x: Tensor, by: int, fill: int = 0) -> Tensor:
    """[B, T]: at place i what x has at i + by; `fill` beyond the end. Example: [[1, 2, 3]] by 1 gives [[2, 3, 0]]."""
    return F.pad(x[:, by:], (0, min(by, x.shape[1])), value=fill)


@dataclass(frozen=True)
class Goals:
    """For the target (0) and each depth d:
    `places` [n_d] of the flat batch that count, and `targets` [n_d], t_{i+d+1}."""

    places: list[Tensor]
    targets: list[Tensor]

    @property
    def counts(self) -> list[int]:
        return [len(places) for places in self.places]


def goals(batch: Batch, num_depths: int) -> Goals:
    """A place counts for depth d when t_{i+d+1} is in the same document and is a counted token."""
    places, targets = [], []
    for by in range(1, num_depths + 2):
        counts = (ahead(batch.documents, by, fill=-2) == batch.documents) & (ahead(batch.counted.long(), by) == 1)
        places.append(counts.flatten().nonzero().squeeze(1))
        targets.append(ahead(batch.tokens, by).flatten()[places[-1]])
    return Goals(places, targets)


def losses(model: Trainee, batch: Batch, weights: list[float], detach: bool = False) -> tuple[Tensor, list[float]]:
    """The scalar to differentiate, sum over d of weights[d] * (sum of depth d's cross entropies);
    and those plain sums."""
    goal = goals(batch, model.num_depths)
    states = model.hidden(batch, detach)
    rows = torch.cat([state[places] for state, places in zip(states, goal.places, strict=True)])
    row_weights = torch.cat(
        [torch.full((n,), w, device=rows.device) for n, w in zip(goal.counts, weights, strict=True)]
    )
    loss, each = linear_cross_entropy(rows, model.target.lm_head.weight, torch.cat(goal.targets), row_weights)
    return loss, [part.sum().item() for part in each.split(goal.counts)]


def linear_cross_entropy(rows: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """sum of weights * cross entropy of rows [n, hidden] @ head [vocab, hidden]^T;
    and each row's own [n], not weighted.

    Logits exist for CHUNK rows at a time, and their gradient is made in the same pass:
    nothing is kept or computed twice."""
    return _LinearCrossEntropy.apply(rows, head, targets, weights)  # type: ignore[no-any-return, no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        each = torch.empty(len(rows), device=rows.device)
        rows_grad = torch.empty_like(rows)
        head_grad = torch.zeros_like(head, dtype=torch.float32)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            log_p = torch.log_softmax((rows[part] @ head.t()).to(torch.float32), dim=-1)
            right = targets[part, None]
            each[part] = -log_p.gather(1, right).squeeze(1)
            grad = log_p.exp_().scatter_add_(1, right, torch.full_like(right, -1, dtype=torch.float32))
            grad = grad.mul_(weights[part, None]).to(rows.dtype)
            rows_grad[part] = grad @ head
            head_grad += grad.t() @ rows[part]
        ctx.save_for_backward(rows_grad, head_grad.to(head.dtype))
        ctx.mark_non_differentiable(each)
        return (each * weights).sum(), each

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows_grad, head_grad = ctx.saved_tensors
        return rows_grad * grads[0].to(rows_grad.dtype), head_grad * grads[0].to(head_grad.dtype), None, None
