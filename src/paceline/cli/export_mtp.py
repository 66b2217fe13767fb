"""`paceline export-mtp`: the MTP modules of a checkpoint as a draft model of their own."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.inspect import size

if TYPE_CHECKING:
    from rich.console import Console

    from paceline.convert.export_plan import ExportPlan


def export_mtp(
    input_dir: Annotated[Path, typer.Option(help="Full checkpoint: sharded safetensors with their index.")],
    output_dir: Annotated[Path, typer.Option(help="Directory to make; it appears when all is written.")],
    layout: Annotated[
        str,
        typer.Option(
            help="Names as xLLM (xllm) or SGLang (sglang) read them, or as they are (original).", metavar="NAME"
        ),
    ] = "xllm",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="keep: bytes as they are, FP8 with its scales. bfloat16: FP8 blocks multiplied out.",
            metavar="NAME",
            show_default="bfloat16 for xllm, else keep",
        ),
    ] = None,
    shared: Annotated[
        str | None,
        typer.Option(
            help="Embedding and head: keep (the module's own, else the model's) or drop.",
            metavar="keep|drop",
            show_default="drop for sglang, else keep",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export, in one step.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, tell the plan, write nothing.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all back and compare it with the source.")] = False,
) -> None:
    """Export the MTP modules of a checkpoint as a draft model for xLLM, SGLang or Paceline.

    Only the shards that hold them are opened, and no tensor is ever whole in memory."""
    from rich.console import Console

    from paceline.convert.export_mtp import check_places
    from paceline.convert.export_plan import plan_export

    console = Console(highlight=False, soft_wrap=True)
    plan = plan_export(input_dir, layout, dtype, shared)
    check_places(plan, output_dir, overwrite)
    if dry_run:
        for line in plan_lines(plan):
            console.print(line, markup=False)
    else:
        _export(plan, output_dir, console, overwrite=overwrite, verify=verify)
    did = "would write" if dry_run else "wrote and verified" if verify else "wrote"
    console.print(f"{did} {summary(plan)} to {output_dir}", markup=False)


def _export(plan: ExportPlan, target: Path, console: Console, *, overwrite: bool, verify: bool) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from paceline.convert.export_mtp import export_mtp as export

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=plan.total_size * (1 + verify))
        export(plan, target, overwrite=overwrite, verify=verify, advance=lambda n: progress.advance(task, n))


def plan_lines(plan: ExportPlan) -> list[str]:
    """One line a tensor; the experts of a layer share one, with `*` for their number."""
    counts: Counter[tuple[str, ...]] = Counter()
    for copy in plan.copies:
        name, source = (re.sub(r"\.experts\.\d+\.", ".experts.*.", text) for text in (copy.name, copy.source))
        came = "" if copy.dtype == copy.info.dtype else f" ({copy.info.dtype})"
        counts[name, f"{copy.dtype} {list(copy.info.shape)}", f"from {source}{came}"] += 1
    return [f"{f'{count} x ' if count > 1 else ''}{'  '.join(line)}" for line, count in counts.items()]


def summary(plan: ExportPlan) -> str:
    """Example: 1 MTP module: 788 tensors, 26.9 GB, from 5 files, layout xllm, dtype bfloat16, shared keep"""
    modules, files = plan.config.num_nextn_predict_layers, len({copy.info.file for copy in plan.copies})
    tensors = f"{_count(modules, 'MTP module')}: {len(plan.copies)} tensors, {size(plan.total_size)}"
    choices = f"layout {plan.layout}, dtype {plan.dtype}, shared {plan.shared}"
    return f"{tensors}, from {_count(files, 'file')}, {choices}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
