"""`paceline bench plot`: what `bench table` and `bench rate` wrote, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paceline.errors import UserError


def bench_plot(
    files: Annotated[
        list[Path], typer.Argument(help="What --output of bench table, or bench rate, wrote.", metavar="FILE...")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="NAME.png and NAME.svg; NAME alone where it ends so.", show_default="as the first file", metavar="NAME"
        ),
    ] = None,
) -> None:
    """Draw speed-up, TPOT, throughput and chosen width against the load, as NAME.png and NAME.svg. Needs matplotlib."""
    from paceline.bench.plots import draw
    from paceline.bench.record import read_record

    stem = files[0].with_suffix("") if out is None else out
    if not stem.name or not stem.absolute().parent.is_dir():
        raise UserError(f"{stem} cannot be written: give a name in a directory that exists.")
    for path in draw({path.stem: read_record(path) for path in files}, stem):
        print(path)
