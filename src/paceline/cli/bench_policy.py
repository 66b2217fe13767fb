"""`paceline bench policy`: adaptive width against fixed widths and an oracle, on recorded traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli import options as opt
from paceline.cli.groups import grouped
from paceline.errors import UserError
from paceline.request import SamplingParams

if TYPE_CHECKING:
    from paceline.bench.traces import Traces

MOST_CONCURRENCY = 512


@grouped
def bench_policy(
    *,
    load: Annotated[Path | None, typer.Option(help="Replay this recording; no model is loaded.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the recording here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it here: NAME.svg or NAME.png. Needs matplotlib.")] = None,
    concurrency: Annotated[str, typer.Option(help="Most requests at a time, a row each.")] = "1,4,8,16,40,80",
    tokens: Annotated[int, typer.Option(help="Tokens of a replay at concurrency 1; more for more.", min=1)] = 4000,
    prompts: Annotated[int, typer.Option(help="Held-out prompts to record.", min=1)] = 66,
    max_tokens: Annotated[int, typer.Option(help="Most tokens a prompt.", min=2)] = 96,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.", min=0)] = 0,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    drafter: opt.Drafter = None,
    modules: opt.Modules,
    model: opt.ModelChoice,
) -> None:
    """Replay what drafts were worth, and what steps cost, through the engine's policy, fixed widths and an oracle.

    The oracle knows which drafts will be accepted, and drafts no other. Loads are steady, a ramp up and down, and
    bursts between a tenth and all of the requests."""
    from rich.console import Console
    from rich.progress import Progress

    from paceline.bench.policy_plot import draw_policy
    from paceline.bench.policy_replay import SHAPES, arm_names, replay_all
    from paceline.bench.traces import Traces
    from paceline.cli.bench_table import parse_concurrency

    counts = parse_concurrency(concurrency)
    if max(counts) > MOST_CONCURRENCY:
        raise UserError(f"--concurrency takes at most {MOST_CONCURRENCY} here.")
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed, ignore_eos=True)
    options = opt.given(model) | opt.engine_options(opt.Drafting(drafter), modules) | {"max_num_seqs": max(counts)}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        traces = Traces.load(load) if load is not None else _record(options, prompts, params, progress)
        if save is not None:
            traces.save(save)
        total = len(SHAPES) * len(counts) * len(arm_names(traces.most))
        task = progress.add_task("replay", total=total)
        rows = replay_all(traces, counts, tokens, lambda: progress.update(task, advance=1))
    if plot is not None:
        draw_policy(rows, plot)
    if json_lines:
        print(json.dumps({"most": traces.most, "traces": len(traces.traces), "rows": rows}))
    else:
        _print(rows, Console())


def _record(options: dict[str, Any], prompts: int, params: SamplingParams, progress: Any) -> Traces:
    from paceline.assets import heldout_prompts
    from paceline.bench.traces import record
    from paceline.llm import LLM
    from paceline.spec.adaptive import AdaptiveWidth

    chosen = [prompt.content for prompt in heldout_prompts()[:prompts]]
    llm = LLM(**options, enable_prefix_caching=False)
    policy = llm.engine.policy.policy
    if not isinstance(policy, AdaptiveWidth):
        raise UserError("--drafter none guesses nothing: there is nothing to decide.")
    task = progress.add_task("record", total=len(chosen) * params.max_tokens)
    few = llm.with_options(max_num_seqs=16)
    return record(few, chosen, params, policy.costs.table, lambda done: progress.update(task, advance=done))


def _print(rows: list[dict[str, Any]], console: Any) -> None:
    from rich.table import Table

    table = Table(
        "load", "requests", "none", "best k", "its tokens/s", "auto", "width", "oracle", "auto/none", "/best k"
    )
    table.add_column("/oracle")
    for row in rows:
        best, auto, oracle = (f"{row[name]:.0f}" for name in (str(row["best"]), "auto", "oracle"))
        shares = (f"{share:.3f}" for share in (row["auto"] / row["0"], row["of_best"], row["of_oracle"]))
        told = (f"{row['0']:.0f}", str(row["best"]), best, auto, f"{row['width']:.2f}", oracle)
        table.add_row(row["shape"], str(row["concurrency"]), *told, *shares)
    console.print(table)
