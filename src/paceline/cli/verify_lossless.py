"""`paceline verify-lossless`: does every way of generating give the tokens of plain decoding?"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli import options as opt
from paceline.cli.groups import grouped
from paceline.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from paceline.assets import HeldOut
    from paceline.bench.lossless import Arm, Report
    from paceline.llm import LLM


@grouped
def verify_lossless(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="A small part of the matrix, for tests.")] = False,
    prompts: Annotated[int | None, typer.Option(help="Held-out prompts.", show_default="200; quick 6", min=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens a prompt.", show_default="48; quick 32", min=1)] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds at temperature 0.8.", show_default="2; quick 1", min=0)
    ] = None,
    drafter: Annotated[
        list[str] | None, typer.Option(help="Only this drafter. Repeatable.", show_default="all")
    ] = None,
    draft_model: opt.DraftModel = None,
    draft_quantization: opt.DraftQuantization = None,
    model: opt.ModelChoice,
) -> None:
    """Compare every drafter, draft length, batch size and temperature with plain decoding; exit 1 if a token differs.

    Prefix hits, chunked prompts and preemption take turns over the matrix."""
    from rich.console import Console

    from paceline.assets import heldout_prompts
    from paceline.bench.lossless import FULL, QUICK, matrix
    from paceline.drafters import drafter_names
    from paceline.llm import LLM

    changes: dict[str, Any] = {"prompts": prompts, "max_tokens": max_tokens, "seeds": seeds}
    size = replace(QUICK if quick else FULL, **{name: value for name, value in changes.items() if value is not None})
    asked = set(drafter or drafter_names())
    if unknown := asked.difference(drafter_names()):
        raise UserError(f"There is no drafter {', '.join(sorted(unknown))}; choose among {', '.join(drafter_names())}.")
    modules = opt.Modules(draft_model=draft_model, draft_quantization=draft_quantization)
    opt.refuse_idle_options(opt.Drafting(",".join(asked)), modules)
    arms = [arm for arm in matrix(size) if arm.drafter in asked]
    first = "mtp" if opt.given(modules) else "none"
    llm = LLM(**opt.given(model), **opt.given(modules), drafter=first)
    chosen = heldout_prompts()[: size.prompts]
    console = Console()
    report = _run(llm, chosen, arms, console)
    _print(report, chosen, console)
    raise typer.Exit(1 if report.differences else 0)


def _run(llm: LLM, prompts: list[HeldOut], arms: list[Arm], console: Console) -> Report:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from paceline.bench.lossless import verify_lossless as verify

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(arms) + 1)

        def show(arm: str) -> None:
            progress.update(task, advance=1, description=arm)

        return verify(llm, [prompt.content for prompt in prompts], arms, show)


def _print(report: Report, prompts: list[HeldOut], console: Console) -> None:
    from rich.table import Table

    counts = Counter((d.arm.drafter, d.arm.num_speculative_tokens) for d in report.differences)
    console.print(
        f"{len(prompts)} held-out prompts x {report.arms} arms: {report.texts} texts, {report.tokens} tokens "
        f"({report.accepted} of them accepted drafts), {report.prefix_hit_tokens} prompt tokens from prefix hits, "
        f"{report.preemptions} preemptions"
    )
    if report.differences:
        table = Table("prompt", "position", "top-2 gap", "arm")
        for found in report.differences:
            table.add_row(prompts[found.prompt].id, str(found.position), f"{found.gap:.2e}", str(found.arm))
        console.print(table)
        console.print("by drafter and k: " + ", ".join(f"{d} {k}: {n}" for (d, k), n in sorted(counts.items())))
    console.print(f"differences: {len(report.differences)}", style="red" if report.differences else "green")
