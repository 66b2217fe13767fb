"""A run's metrics.jsonl as a picture: loss and held-out acceptance per depth over the tokens seen."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf")


@dataclass
class Curve:
    """`values[i][d]` belongs to depth d (of the loss, 0 is the target) when `tokens[i]` tokens had been seen."""

    tokens: list[float] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)

    def add(self, tokens: float, values: list[float]) -> None:
        self.tokens.append(tokens)
        self.values.append(values)


@dataclass
class Curves:
    loss: Curve
    acceptance: Curve


def read_curves(metrics: Path) -> Curves:
    """Raises UserError for a file that is missing, unreadable or empty."""
    try:
        curves = _curves(_last_of_each(metrics))
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{metrics} cannot be read as a run's metrics; give the --out directory of a run.") from None
    if not curves.loss.tokens and not curves.acceptance.tokens:
        raise UserError(f"{metrics} holds no figures yet: let the run go on for some steps.")
    return curves


def _last_of_each(metrics: Path) -> list[dict[str, Any]]:
    """The lines in order of their steps. Of a step that was done twice, after a crash, the later line counts."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    last = {(line["step"], line["kind"] == "eval"): line for line in lines}
    return [last[key] for key in sorted(last)]


def _curves(lines: list[dict[str, Any]]) -> Curves:
    """An evaluation does not say how many tokens were seen: as many a step as until the last line before it."""
    curves = Curves(Curve(), Curve())
    step, tokens = 1, 0.0
    for line in lines:
        if line["kind"] == "step":
            step, tokens = line["step"], line["tokens"]
            curves.loss.add(tokens, line["loss"])
        else:
            curves.acceptance.add(tokens * line["step"] / step, line["total"]["acceptance"])
    return curves


def draw_curves(curves: Curves, picture: Path) -> None:
    """Writes the picture, of the kind that its ending names. Raises UserError without matplotlib, or for an ending that
    is none of SUFFIXES."""
    if picture.suffix not in SUFFIXES:
        raise UserError(f"{picture} must end in one of {', '.join(SUFFIXES)}.")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("Drawing needs matplotlib: install it with pip install matplotlib.") from None
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, acceptance = figure.subplots(1, 2)
    _draw(loss, curves.loss, ["target", *(f"depth {d}" for d in range(1, 99))], "loss (nats)")
    _draw(acceptance, curves.acceptance, [f"depths 1..{d}" for d in range(1, 99)], "accepted, held-out text")
    acceptance.set_ylim(0, 1)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


def _draw(axes: Axes, curve: Curve, names: list[str], title: str) -> None:
    millions = [tokens / 1e6 for tokens in curve.tokens]
    for name, values in zip(names, zip(*curve.values, strict=True), strict=False):
        axes.plot(millions, values, label=name, marker="." if len(values) < 50 else "")
    axes.set(title=title, xlabel="million tokens")
    axes.grid(alpha=0.3)
    if curve.values:
        axes.legend()
