"""`paceline plot-training`: the curves of a run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plot_training(
    run: Annotated[Path, typer.Argument(help="Directory of a run: the --out of `paceline train`.")],
    out: Annotated[Path, typer.Option(help="The picture: .svg, .png or .pdf.")],
) -> None:
    """Draw loss and held-out acceptance per depth over the tokens seen. Needs matplotlib."""
    from paceline.train.curves import draw_curves, read_curves

    draw_curves(read_curves(run / "metrics.jsonl"), out)
