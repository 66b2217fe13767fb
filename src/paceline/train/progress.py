"""What a run tells: a bar on a terminal, lines elsewhere, and every figure in metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from paceline.train.evaluate import Evaluation
from paceline.train.trainer import StepReport, Trainer


class Reporter:
    """Averages steps between two lines. Use it as a context manager, so that the terminal is left whole."""

    def __init__(self, trainer: Trainer, metrics: Path, every: int, console: Console | None = None) -> None:
        self.trainer, self.metrics, self.every = trainer, metrics, every
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.recent: list[StepReport] = []
        columns = (BarColumn(bar_width=20), TaskProgressColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=1.0)

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, report: StepReport) -> None:
        self.recent.append(report)
        line = self._line(self.recent)
        self.bar.update(self.task, completed=report.progress, description=line)
        if len(self.recent) >= self.every:
            self._write({"kind": "step", **self._figures(self.recent)})
            if not self.console.is_terminal:
                self.console.print(line)
            self.recent = []

    def evaluation(self, result: Evaluation) -> None:
        step = self.trainer.step_count
        accepted = " ".join(f"{a:.3f}" for a in result.total.cumulative())
        self.console.print(
            f"step {step}  held out: loss {_numbers(result.total.losses())}  accepted 1..d {accepted}"
            f"  acceptance length {result.acceptance_length:.2f}"
        )
        self._write({"kind": "eval", "step": step, "elapsed": self.trainer.elapsed, **result.to_dict()})

    def say(self, text: str) -> None:
        self.console.print(text)

    def _figures(self, reports: list[StepReport]) -> dict[str, Any]:
        last, seconds = reports[-1], sum(r.seconds for r in reports)
        return {
            "step": last.step,
            "loss": [sum(x) / len(reports) for x in zip(*(r.loss for r in reports), strict=True)],
            "grad_norm": last.grad_norm,
            "lr": last.lr,
            "tokens": self.trainer.tokens_seen,
            "tokens_per_second": sum(r.tokens for r in reports) / max(seconds, 1e-9),
            "elapsed": self.trainer.elapsed,
            "progress": last.progress,
        }

    def _line(self, reports: list[StepReport]) -> str:
        f = self._figures(reports)
        left = f["elapsed"] * (1 - f["progress"]) / f["progress"] if f["progress"] else 0.0
        return (
            f"step {f['step']}  loss {_numbers(f['loss'])}  {f['tokens_per_second']:.0f} tokens/s"
            f"  lr {f['lr']:.2e}  grad {f['grad_norm']:.2f}  left {int(left) // 60}:{int(left) % 60:02d}"
        )

    def _write(self, figures: dict[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


def _numbers(values: list[float]) -> str:
    """The target's figure, then each depth's."""
    first, *rest = (f"{value:.3f}" for value in values)
    return f"{first} (depths {' '.join(rest)})" if rest else first
