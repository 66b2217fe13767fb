"""Held-out loss and acceptance per depth, by teacher forcing on the answers of held-out text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.train.loss import CHUNK, Trainee, ahead, goals
from paceline.train.packing import Batch, Packed


@dataclass
class Tally:
    """Sums over places. places[d], loss[d]: what depth d (0: the target) had to predict, where all depths below it had
    to; agreed[d]: places where depths 1..d all drafted what the target itself says there; reached[d]: places with depth
    d to predict where depths 1..d-1 all agreed."""

    places: list[float]
    loss: list[float]
    agreed: list[float]
    reached: list[float]

    @staticmethod
    def empty(depths: int) -> Tally:
        return Tally(*([0.0] * (depths + 1) for _ in range(4)))

    def losses(self) -> list[float]:
        return [_ratio(loss, n) for loss, n in zip(self.loss, self.places, strict=True)]

    def cumulative(self) -> list[float]:
        """P(depths 1..d all accepted), for d = 1..D."""
        return [_ratio(a, n) for a, n in zip(self.agreed[1:], self.places[1:], strict=True)]

    def conditional(self) -> list[float]:
        """P(depth d accepted given that 1..d-1 were)."""
        return [_ratio(a, n) for a, n in zip(self.agreed[1:], self.reached[1:], strict=True)]


@dataclass
class Evaluation:
    total: Tally
    sources: dict[str, Tally] = field(default_factory=dict)

    @property
    def acceptance_length(self) -> float:
        """Tokens a verification emits: 1 + sum over d of P(1..d accepted)."""
        return 1 + sum(self.total.cumulative())

    def to_dict(self) -> dict[str, Any]:
        parts = {"total": self.total, **self.sources}
        return {
            name: {
                "loss": t.losses(),
                "acceptance": t.cumulative(),
                "conditional": t.conditional(),
                "places": t.places[0],
            }
            for name, t in parts.items()
        }


@torch.no_grad()
def evaluate(model: Trainee, data: Packed, max_rows: int, rows_at_once: int, device: torch.device) -> Evaluation:
    """Over the first `max_rows` rows of `data` (documents are packed in a random order)."""
    result = Evaluation(Tally.empty(model.num_depths))
    training = model.training
    model.eval()
    try:
        for start in range(0, min(max_rows, len(data)), rows_at_once):
            chosen = range(start, min(start + rows_at_once, max_rows, len(data)))
            _add(result, model, data.batch(chosen).to(device), data.sources(chosen).to(device), data.corpus.names)
    finally:
        model.train(training)
    return result


def _add(result: Evaluation, model: Trainee, batch: Batch, sources: Tensor, names: tuple[str, ...]) -> None:
    depths = model.num_depths
    goal, states = goals(batch, depths), model.hidden(batch)
    own = torch.full_like(batch.tokens, -1)  # the target's own word for t_{i+1}
    chain = torch.ones(batch.tokens.numel(), dtype=torch.bool, device=own.device)  # so far all depths agreed
    drafted = chain.clone()  # so far all depths had a token to predict, as when serving
    for d in range(depths + 1):
        going_on = drafted[goal.places[d]]
        places, targets = goal.places[d][going_on], goal.targets[d][going_on]
        drafted = torch.zeros_like(drafted).index_fill_(0, places, True)
        loss, words = _predict(model, states[d][places], targets)
        reached = chain[places]
        if d == 0:
            own.view(-1)[places] = words
            agreed = reached
        else:
            agreed = reached & (words == ahead(own, d).flatten()[places])
            chain[places] = agreed
        columns = torch.stack([torch.ones_like(loss), loss, agreed.float(), reached.float()], dim=1)
        _sum_up(result, d, depths, columns, sources.flatten()[places], names)


def _predict(model: Trainee, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy [n] and most likely token [n]."""
    losses, words = [], []
    for part, right in zip(rows.split(CHUNK), targets.split(CHUNK), strict=True):
        logits = model.target.lm_head(part)
        words.append(logits.argmax(-1))
        losses.append(F.cross_entropy(logits.to(torch.float32), right, reduction="none"))
    return torch.cat(losses), torch.cat(words)


def _sum_up(result: Evaluation, d: int, depths: int, columns: Tensor, sources: Tensor, names: tuple[str, ...]) -> None:
    sums = torch.zeros(len(names), 4, device=columns.device).index_add_(0, sources, columns)
    for name, row in [("", sums.sum(0)), *zip(names, sums, strict=True)]:
        tally = result.sources.setdefault(name, Tally.empty(depths)) if name else result.total
        for part, value in zip((tally.places, tally.loss, tally.agreed, tally.reached), row.tolist(), strict=True):
            part[d] += value


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
