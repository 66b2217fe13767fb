"""The learning rate as a function of the step and of the share of the run that is done."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("cosine", "wsd", "constant")


@dataclass(frozen=True)
class Schedule:
    """`kind` wsd: warm-up, stable, then a linear decay over the last `decay` of the run (Hu et al. 2024, MiniCPM);
    cosine: decay from the end of the warm-up. `floor`: the last learning rate over the largest one."""

    kind: str
    lr: float
    warmup_steps: int
    decay: float = 0.4
    floor: float = 0.0

    def at(self, step: int, progress: float) -> float:
        """`step` counts from 0; `progress` in [0, 1] is the share of the run, in steps or in time, that is done."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        progress = min(max(progress, 0.0), 1.0)
        if self.kind == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * progress))
        elif self.kind == "wsd":
            share = min(1.0, (1 - progress) / self.decay) if self.decay else 1.0
        else:
            share = 1.0
        return self.lr * warm * (self.floor + (1 - self.floor) * share)
