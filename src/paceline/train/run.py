"""One run, from data to exported model."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from paceline.config import ModelConfig
from paceline.train.export import export
from paceline.train.packing import Packed
from paceline.train.progress import Reporter
from paceline.train.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """The directory of a run: `state` to resume from, `model` as last exported, `metrics.jsonl`."""

    directory: Path
    tokenizer_dir: Path
    model_config: ModelConfig
    held_out: Packed | None

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def model(self) -> Path:
        return self.directory / "model"


class Stop:
    """Set by SIGINT or SIGTERM: the step in progress ends, then the run is saved."""

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def train(trainer: Trainer, run: Run, resume: bool) -> bool:
    """Trains to the end, True, or until asked to stop, False."""
    if resume:
        trainer.resume(run.state)
    run.directory.mkdir(parents=True, exist_ok=True)
    config = trainer.config
    with Reporter(trainer, run.directory / "metrics.jsonl", config.log_every) as reporter, stop_signals() as stop:
        while trainer.progress < 1 and not stop.asked:
            reporter.step(trainer.step())
            if trainer.step_count % config.save_every == 0:
                trainer.save(run.state)
            if trainer.step_count % config.eval_every == 0 and trainer.progress < 1:
                publish(trainer, run, reporter, config.eval_tokens)
        trainer.save(run.state)
        if stop.asked:
            reporter.say(f"Stopped and saved after step {trainer.step_count}; the same command with --resume goes on.")
            return False
        publish(trainer, run, reporter, max_tokens=None)
        reporter.say(f"Done: {trainer.step_count} steps, {trainer.tokens_seen} tokens; the model is in {run.model}.")
    return True


def publish(trainer: Trainer, run: Run, reporter: Reporter, max_tokens: int | None) -> None:
    """Exports the model, and measures it on held-out text (`max_tokens` None: on all of it)."""
    with trainer.averaged():
        export(trainer.model, run.model_config, run.tokenizer_dir, run.model, trainer.config.save_dtype)
    if run.held_out is not None:
        rows = len(run.held_out) if max_tokens is None else max(1, max_tokens // run.held_out.length)
        reporter.evaluation(trainer.evaluate(run.held_out, rows))


@contextmanager
def stop_signals() -> Iterator[Stop]:
    stop = Stop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
