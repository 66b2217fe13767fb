"""`paceline quantize`: a checkpoint with its weights in int8 or FP8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.inspect import size

if TYPE_CHECKING:
    from rich.console import Console

    from paceline.convert.quantize import QuantizePlan


def quantize(
    source: Annotated[Path, typer.Argument(help="Directory of a checkpoint.", metavar="IN")],
    target: Annotated[Path, typer.Argument(help="Directory to make; it appears when all is written.", metavar="OUT")],
    quantization: Annotated[
        str,
        typer.Option(
            help="int8: one scale an output. fp8: e4m3 with a scale for each block of 128 x 128, as DeepSeek-V3.",
            metavar="int8|fp8",
        ),
    ] = "int8",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the checkpoint that is there, in one step.")
    ] = False,
) -> None:
    """Write a checkpoint with most weights in one byte a number, MTP modules included. It loads as it is.

    One tensor at a time is in memory. Norms, routers, the embedding and what MLA uses as a matrix stay as they are; in
    FP8 the head too."""
    from rich.console import Console

    from paceline.checkpoint.quantization import format_named
    from paceline.checkpoint.resolve import resolve_model
    from paceline.convert.quantize import plan_quantize
    from paceline.errors import UserError

    form = format_named(quantization)
    if form is None:
        raise UserError("--quantization none changes nothing; choose int8 or fp8.")
    plan = plan_quantize(resolve_model(source), form)
    console = Console(highlight=False, soft_wrap=True)
    _write(plan, target, overwrite, console)
    before, after = plan.bytes_read, plan.bytes_written
    console.print(
        f"wrote {size(after)} of {form.name} to {target}: {after / before:.2f} of {size(before)}",
        markup=False,
    )


def _write(plan: QuantizePlan, target: Path, overwrite: bool, console: Console) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from paceline.convert.quantize import quantize as write

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=plan.bytes_read)
        write(plan, target, overwrite=overwrite, advance=lambda n: progress.advance(task, n))
