"""`paceline bench`: acceptance by source, and speed against plain decoding, on the held-out prompts."""

from __future__ import annotations

import json
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli import options as opt
from paceline.cli.groups import grouped
from paceline.errors import UserError
from paceline.request import SamplingParams

if TYPE_CHECKING:
    from rich.console import Console

    from paceline.assets import HeldOut
    from paceline.llm import LLM
    from paceline.request import SpeculationStats


@grouped
def bench(
    *,
    context: typer.Context,
    prompts: Annotated[int, typer.Option(help="Held-out prompts for acceptance.", min=1)] = 242,
    timed_prompts: Annotated[int, typer.Option(help="The first so many of them for speed; 0: none.", min=0)] = 38,
    max_tokens: Annotated[int, typer.Option(help="Most tokens a prompt.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.", min=0)] = 0,
    repeats: Annotated[int, typer.Option(help="Timed rounds; medians are shown.", min=1)] = 5,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    drafting: opt.Drafting,
    modules: opt.Modules,
    lookup: opt.Lookup,
    model: opt.ModelChoice,
) -> None:
    """Measure acceptance (deterministic) and tokens per second at batch 1 (in turn with plain decoding, medians).

    The subcommands measure more, each with its own options."""
    if context.invoked_subcommand is not None:
        _refuse_lost_options(context)
        return
    opt.refuse_idle_options(drafting, modules, lookup)
    from rich.console import Console

    from paceline.assets import heldout_prompts
    from paceline.llm import LLM

    llm = LLM(**opt.given(model), **opt.engine_options(drafting, modules, lookup), enable_prefix_caching=False)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    chosen, console = heldout_prompts()[:prompts], Console(stderr=True)
    parts = _acceptance(llm, chosen, params, console)
    speed = _speed(llm, chosen[:timed_prompts], params, repeats, console) if timed_prompts else None
    settings = {
        "drafter": llm.drafter,
        "num_speculative_tokens": llm.num_speculative_tokens,
        "temperature": temperature,
    }
    if json_lines:
        by_source = {source: stats.as_dict() for source, stats in parts.items()}
        print(json.dumps({**settings, "acceptance": by_source, "speed": speed}))
    else:
        _print(Console(), settings, parts, speed)
    if speed is not None and not speed["same_tokens"]:
        raise typer.Exit(1)


def _refuse_lost_options(context: typer.Context) -> None:
    """Raises `UserError` for an option before the subcommand, which would not look at it."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            command = context.invoked_subcommand
            raise UserError(f"--{name.replace('_', '-')} stands before {command}; write it after `bench {command}`.")


def _acceptance(
    llm: LLM, prompts: list[HeldOut], params: SamplingParams, console: Console
) -> dict[str, SpeculationStats]:
    from rich.progress import Progress

    from paceline.bench.acceptance import acceptance_by_source, total

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("acceptance", total=len(prompts))
        parts = acceptance_by_source(llm, prompts, params, lambda done: progress.update(task, advance=done))
    return parts | {"all": total(parts)}


def _speed(llm: LLM, prompts: list[HeldOut], params: SamplingParams, repeats: int, console: Console) -> dict[str, Any]:
    from rich.progress import Progress

    from paceline.bench.race import race

    plain = llm.with_options(drafter="none")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("speed", total=repeats * len(prompts))
        result = race(
            plain, llm, [p.content for p in prompts], params, repeats, lambda: progress.update(task, advance=1)
        )
    return {
        "prompts": len(prompts),
        "repeats": repeats,
        "plain_tokens_per_second": median(result.rates_plain),
        "tokens_per_second": median(result.rates_fast),
        "ratio": result.ratio,
        "same_tokens": result.same,
    }


def _print(console: Console, settings: dict[str, Any], parts: dict[str, SpeculationStats], speed: Any) -> None:
    from rich.table import Table

    title = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    table = Table("source", "acceptance", "length", "by position", title=title)
    for source, stats in parts.items():
        by_position = " ".join(f"{rate:.2f}" for rate in stats.acceptance_by_position)
        table.add_row(source, f"{stats.acceptance_rate:.3f}", f"{stats.acceptance_length:.2f}", by_position)
    console.print(table)
    if speed is not None:
        drafter, rates = settings["drafter"], (speed["plain_tokens_per_second"], speed["tokens_per_second"])
        console.print(
            f"batch 1, {speed['prompts']} prompts, medians of {speed['repeats']} rounds: plain {rates[0]:.0f}, "
            f"{drafter} {rates[1]:.0f} tokens/s, ratio {speed['ratio']:.2f}, "
            f"same tokens: {'yes' if speed['same_tokens'] else 'NO'}"
        )
