"""What a user says of a training run. Imports no torch, so that --help answers at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from paceline.errors import UserError
from paceline.train.schedule import KINDS


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """What `Optimizer` needs to know; `TrainConfig` checks it."""

    optimizer: str = "muon"
    adam_lr_ratio: float = 1.0  # AdamW's learning rate over Muon's, when both run
    weight_decay: float = 0.1
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    ema: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One home for every default. A run ends after `steps`, `epochs` or `max_minutes`, whichever comes first.

    Raises `UserError` for a value that makes no sense."""

    steps: int | None = None
    epochs: float | None = None
    max_minutes: float | None = None
    batch_tokens: int = 8192
    micro_tokens: int | None = None  # tokens in one forward pass; None: the whole batch
    seq_len: int = 512
    lr: float = 5e-3
    schedule: str = "wsd"
    warmup_steps: int = 50
    decay: float = 0.4
    final_lr_ratio: float = 0.02
    mtp_loss_weight: float = 0.3
    detach_mtp: bool = False
    freeze_target: bool = False
    draft_window: int = 0
    loss_on: str = "all"
    balance_rate: float = 0.001
    seed: int = 0
    dtype: str = "bfloat16"
    save_dtype: str | None = None  # None: dtype
    log_every: int = 10
    eval_every: int = 500
    eval_tokens: int = 65536
    save_every: int = 500
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        o, micro = self.optim, self.micro_tokens or self.batch_tokens
        ends = [x for x in (self.steps, self.epochs, self.max_minutes) if x is not None]
        checks = (
            (all(map(math.isfinite, self._numbers())), "every number must be finite"),
            (bool(ends), "say when to stop: give --steps, --epochs or --max-minutes"),
            (all(x > 0 for x in ends), "--steps, --epochs and --max-minutes must be above 0"),
            (self.seq_len >= 8, "--seq-len must be at least 8"),
            (self.batch_tokens >= self.seq_len, "--batch-tokens must be at least --seq-len"),
            (
                self.seq_len <= micro <= self.batch_tokens,
                "--micro-tokens must lie between --seq-len and --batch-tokens",
            ),
            (self.lr > 0, "--lr must be above 0"),
            (self.schedule in KINDS, f"--schedule must be one of {', '.join(KINDS)}"),
            (self.warmup_steps >= 0, "--warmup-steps must not be negative"),
            (0 <= self.decay <= 1, "--decay must lie between 0 and 1"),
            (0 <= self.final_lr_ratio <= 1, "--final-lr-ratio must lie between 0 and 1"),
            (self.mtp_loss_weight >= 0, "--mtp-loss-weight must not be negative"),
            (self.balance_rate >= 0, "--balance-rate must not be negative"),
            (self.dtype in ("bfloat16", "float32"), "--dtype must be bfloat16 or float32"),
            (self.save_dtype in (None, "bfloat16", "float32"), "--save-dtype must be bfloat16 or float32"),
            (self.draft_window >= 0, "--draft-window must not be negative"),
            (not self.freeze_target or self.mtp_loss_weight > 0, "--freeze-target needs --mtp-loss-weight above 0"),
            (not (self.freeze_target and self.detach_mtp), "--freeze-target implies --detach-mtp: give one of them"),
            (self.loss_on in ("all", "answers"), "--loss-on must be all or answers"),
            (o.optimizer in ("muon", "adamw"), "--optimizer must be muon or adamw"),
            (0 <= o.ema < 1, "--ema must lie between 0 and 1, 1 excluded"),
            (o.weight_decay >= 0, "--weight-decay must not be negative"),
            (o.adam_lr_ratio > 0, "--adam-lr-ratio must be above 0"),
            (o.clip >= 0, "--clip must not be negative"),
            (min(self.log_every, self.eval_every, self.save_every) >= 1, "intervals must be at least 1 step"),
            (self.eval_tokens >= 1, "--eval-tokens must be at least 1"),
            (0 <= self.seed < 2**31, "--seed must lie between 0 and 2147483647"),
        )
        for good, sentence in checks:
            if not good:
                raise UserError(sentence + ".")

    def _numbers(self) -> list[float]:
        return [x for part in (self, self.optim) for x in vars(part).values() if isinstance(x, int | float)]
