"""Muon and AdamW over float32 master weights; the model itself may be bf16.

Muon (Jordan et al. 2024): the momentum of a matrix is orthogonalised by a Newton-Schulz iteration before it is applied.
The update is scaled by 0.2 * sqrt(larger side), so that its size is AdamW's and one learning rate serves both
(Liu et al. 2025, "Muon is scalable for LLM training"). Embedding, head, router, norms and biases stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paceline.layers.basic import Embedding
from paceline.layers.moe import Router
from paceline.train.loss import Trainee
from paceline.train.settings import OptimConfig

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5


@dataclass
class Slot:
    """One parameter and what the optimiser keeps of it, all float32 beside `param` itself."""

    name: str
    param: nn.Parameter
    muon: bool
    decays: bool
    master: Tensor
    grad: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)


class Optimizer:
    """Call `accumulate` after each backward pass and `step` once for all of them. `state` is all that a resume
    needs."""

    def __init__(self, model: Trainee, config: OptimConfig) -> None:
        self.config, self.steps = config, 0
        self.slots = [_slot(name, p, kind, config) for name, p, kind in _kinds(model)]
        self.by_shape: dict[torch.Size, list[Slot]] = {}
        for slot in self.slots:
            if slot.muon:
                self.by_shape.setdefault(slot.param.shape, []).append(slot)

    @torch.no_grad()
    def accumulate(self) -> None:
        """Adds the parameters' gradients to the float32 sums and clears them."""
        for slot in self.slots:
            if slot.param.grad is not None:
                slot.grad += slot.param.grad
                slot.param.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """One update at learning rate `lr`; returns the gradient's norm before clipping."""
        self.steps += 1
        norm = float(torch.stack([slot.grad.norm() for slot in self.slots]).norm())
        if self.config.clip and norm > self.config.clip:
            for slot in self.slots:
                slot.grad *= self.config.clip / norm
        for same in self.by_shape.values():
            self._muon(same, lr)
        adam_lr = lr * self.config.adam_lr_ratio if self.by_shape else lr
        for slot in self.slots:
            if not slot.muon:
                self._adamw(slot, adam_lr)
            self._publish(slot)
        return norm

    def _muon(self, slots: list[Slot], lr: float) -> None:
        mu = self.config.momentum
        directions = []
        for slot in slots:
            momentum = slot.moments["momentum"].lerp_(slot.grad, 1 - mu)
            directions.append(slot.grad.lerp(momentum, mu))  # Nesterov
        rows, columns = slots[0].param.shape[-2:]
        updates = orthogonalised(torch.stack(directions).flatten(0, -3)).view(len(slots), *slots[0].param.shape)
        scale = 0.2 * max(rows, columns) ** 0.5
        for slot, update in zip(slots, updates, strict=True):
            slot.master.mul_(1 - lr * self.config.weight_decay).add_(update, alpha=-lr * scale)

    def _adamw(self, slot: Slot, lr: float) -> None:
        b1, b2 = self.config.betas
        first = slot.moments["first"].lerp_(slot.grad, 1 - b1)
        second = slot.moments["second"].lerp_(slot.grad.square(), 1 - b2)
        if slot.decays:
            slot.master.mul_(1 - lr * self.config.weight_decay)
        spread = (second / (1 - b2**self.steps)).sqrt_().add_(self.config.eps)
        slot.master.addcdiv_(first, spread, value=-lr / (1 - b1**self.steps))

    def _publish(self, slot: Slot) -> None:
        slot.grad.zero_()
        slot.param.copy_(slot.master)
        if "ema" in slot.moments:
            # A short memory at first, so that the random start is soon forgotten.
            keep = min(self.config.ema, (1 + self.steps) / (10 + self.steps))
            slot.moments["ema"].lerp_(slot.master, 1 - keep)

    def state(self) -> dict[str, Tensor]:
        """`kind.parameter name` to the very tensors, to save or to fill."""
        tensors = {f"master.{slot.name}": slot.master for slot in self.slots}
        for slot in self.slots:
            tensors.update({f"{kind}.{slot.name}": value for kind, value in slot.moments.items()})
        return tensors

    @torch.no_grad()
    def use(self, kind: str) -> None:
        """Gives the model the `master` or, where it is kept, the `ema` weights."""
        for slot in self.slots:
            slot.param.copy_(slot.moments.get(kind, slot.master))


def orthogonalised(g: Tensor) -> Tensor:
    """g [n, rows, columns] to matrices near U V^T of g's singular vectors, in float32; the work is done in bf16."""
    x = g.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    x = x.mT.contiguous() if tall else x
    x = x / (x.to(torch.float32).norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(torch.float32)


def _kinds(model: Trainee) -> Iterator[tuple[str, nn.Parameter, str]]:
    """Every trained parameter once: its name and whether it is a `matrix`, a `table` (embedding, head, router) or
    `small`."""
    tables = {id(model.target.lm_head.weight)}
    for module in model.modules():
        if isinstance(module, Embedding | Router):
            tables.add(id(module.weight))
    for name, param in model.named_parameters():
        if param.requires_grad:
            yield name, param, "table" if id(param) in tables else "matrix" if param.dim() >= 2 else "small"


def _slot(name: str, param: nn.Parameter, kind: str, config: OptimConfig) -> Slot:
    master = param.detach().to(torch.float32, copy=True)
    muon = kind == "matrix" and config.optimizer == "muon"
    slot = Slot(name, param, muon, kind != "small", master, torch.zeros_like(master))
    for moment in ("momentum",) if muon else ("first", "second"):
        slot.moments[moment] = torch.zeros_like(master)
    if config.ema:
        slot.moments["ema"] = master.clone()
    return slot
