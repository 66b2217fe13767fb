"""The training loop: batches in, updates out, with checkpoints that resume exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paceline.config import ModelConfig, dtype_from_name
from paceline.errors import UserError
from paceline.train.distil import divergences
from paceline.train.evaluate import Evaluation, evaluate
from paceline.train.initial import fill, new_trainee
from paceline.train.loss import goals, losses
from paceline.train.optim import Optimizer
from paceline.train.packing import PADDING, Batch, Packed
from paceline.train.schedule import Schedule
from paceline.train.settings import TrainConfig
from paceline.train.state import load_state, save_state


@dataclass(frozen=True)
class StepReport:
    """loss: mean cross entropy of the target and of each depth (beside a frozen target: each depth's divergence from
    it), in nats; tokens: without padding; seconds: of this step."""

    step: int
    progress: float
    loss: list[float]
    grad_norm: float
    lr: float
    tokens: int
    seconds: float


class Trainer:
    """`step_count` steps are done; `elapsed` seconds were spent in this run and the ones it resumes."""

    def __init__(
        self,
        config: TrainConfig,
        model_config: ModelConfig,
        data: Packed,
        device: torch.device,
        init_from: Path | None = None,
    ) -> None:
        self.config, self.data, self.device = config, data, device
        self.model = new_trainee(model_config, config.seed, dtype_from_name(config.dtype), device, config.draft_window)
        if init_from is not None:
            fill(self.model, init_from)
        if config.freeze_target:
            self.model.freeze_target()
        self.optimizer = Optimizer(self.model, config.optim)
        self.schedule = Schedule(config.schedule, config.lr, config.warmup_steps, config.decay, config.final_lr_ratio)
        self.rows = config.batch_tokens // config.seq_len
        self.micro_rows = (config.micro_tokens or config.batch_tokens) // config.seq_len
        self.step_count = self.tokens_seen = 0
        self.elapsed_before, self.started = 0.0, time.monotonic()
        self.total_steps = self._total_steps()

    def _total_steps(self) -> int | None:
        c = self.config
        by_epochs = None if c.epochs is None else max(1, round(c.epochs * len(self.data) / self.rows))
        given = [n for n in (c.steps, by_epochs) if n is not None]
        return min(given) if given else None

    @property
    def elapsed(self) -> float:
        return self.elapsed_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """The share of the run that is done, in steps or in time, whichever is more; 1 when it is over."""
        by_steps = self.step_count / self.total_steps if self.total_steps else 0.0
        by_time = self.elapsed / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def step(self) -> StepReport:
        """One update from `rows` rows, in passes of `micro_rows`; every pass is weighted as if all were one."""
        started, progress = time.monotonic(), self.progress
        batch = self.data.step(self.step_count, self.rows)
        depths = self.model.num_depths
        counts = [max(n, 1) for n in goals(batch, depths).counts]
        shares = [0.0 if self.config.freeze_target else 1.0] + [self.config.mtp_loss_weight / max(depths, 1)] * depths
        weights = [share / n for share, n in zip(shares, counts, strict=True)]
        sums = [0.0] * (depths + 1)
        for start in range(0, len(batch.tokens), self.micro_rows):
            part = batch.rows(start, start + self.micro_rows).to(self.device)
            loss, part_sums = self._losses(part, weights)
            loss.backward()
            self.optimizer.accumulate()
            sums = [a + b for a, b in zip(sums, part_sums, strict=True)]
        lr = self.schedule.at(self.step_count, progress)
        norm = self.optimizer.step(lr)
        self._balance(self.config.balance_rate * min(1.0, 4 * (1 - progress)))
        tokens = int((batch.documents != PADDING).sum())
        self.step_count, self.tokens_seen = self.step_count + 1, self.tokens_seen + tokens
        means = [s / n for s, n in zip(sums, counts, strict=True)]
        return StepReport(self.step_count, self.progress, means, norm, lr, tokens, time.monotonic() - started)

    def _losses(self, part: Batch, weights: list[float]) -> tuple[Tensor, list[float]]:
        if self.config.freeze_target:
            return divergences(self.model, part, weights)
        return losses(self.model, part, weights, self.config.detach_mtp)

    def _balance(self, rate: float) -> None:
        for module in self.model.learning():
            balance = getattr(module, "balance", None)
            if balance is not None:
                balance(rate)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights, where they are kept."""
        self.optimizer.use("ema")
        try:
            yield
        finally:
            self.optimizer.use("master")

    def evaluate(self, data: Packed, max_rows: int) -> Evaluation:
        with self.averaged():
            return evaluate(self.model, data, max_rows, self.micro_rows, self.device)

    def save(self, directory: Path) -> None:
        numbers = {"steps": self.step_count, "tokens": self.tokens_seen, "elapsed": self.elapsed, **self._identity()}
        save_state(directory, self._tensors(), numbers)

    def resume(self, directory: Path) -> None:
        """Continues where `save` stood; exactly, with the same options. Rates, schedule and `loss_on` may change, for
        another stage. Raises UserError when the batches would not be those of the first run."""
        numbers = load_state(directory, self._tensors())
        changed = [name for name, value in self._identity().items() if numbers.get(name, value) != value]
        if changed:
            raise UserError(
                f"This run is not the one in {directory.parent}, its {changed[0]} differs: "
                "resume with the same data, --repeat and options."
            )
        self.step_count, self.tokens_seen = numbers["steps"], numbers["tokens"]
        self.elapsed_before, self.started = numbers["elapsed"], time.monotonic()
        self.optimizer.steps = self.step_count
        self.optimizer.use("master")

    def _identity(self) -> dict[str, int | str]:
        """What decides which batch comes at which step."""
        c = self.config
        return {"seed": c.seed, "seq_len": c.seq_len, "batch_tokens": c.batch_tokens, "data": self.data.fingerprint}

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes: the optimiser's tensors and the parameters it does not own (router
        biases)."""
        others = {f"param.{name}": p.data for name, p in self.model.named_parameters() if not p.requires_grad}
        return self.optimizer.state() | others
