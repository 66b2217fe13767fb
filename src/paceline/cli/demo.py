"""`paceline demo`: real prompts, plain and with MTP side by side, then what it brought."""

from __future__ import annotations

import io
import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from paceline.cli import options as opt
from paceline.cli.colours import Painter, legend
from paceline.cli.groups import grouped
from paceline.errors import UserError
from paceline.request import SamplingParams

if TYPE_CHECKING:
    from paceline.assets import HeldOut
    from paceline.bench.race import Race
    from paceline.llm import LLM

PICTURE_WIDTH, PICTURE_PROMPTS = 116, 4


@grouped
def demo(
    *,
    prompts: Annotated[int, typer.Option(help="How many prompts.", min=1, max=12)] = 12,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate for each.", min=1)] = 96,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.", min=0)] = 0,
    repeats: Annotated[int, typer.Option(help="Timed rounds; the table shows their medians.", min=1)] = 5,
    num_speculative_tokens: opt.NumSpeculativeTokens = None,
    modules: opt.Modules,
    model: opt.ModelChoice,
    svg: Annotated[str | None, typer.Option(help="Also save the picture of it as SVG.", metavar="FILE")] = None,
) -> None:
    """Watch a model write with MTP speculation beside plain decoding: the same tokens, sooner."""
    if svg is not None and not Path(svg).absolute().parent.is_dir():
        raise UserError(f"There is no directory to write {svg} in; make it first.")
    from paceline.assets import demo_prompts
    from paceline.llm import LLM

    console = Console()
    options = opt.engine_options(opt.Drafting("mtp", num_speculative_tokens), modules)
    fast = LLM(**opt.given(model), **options, enable_prefix_caching=False)
    plain = fast.with_options(drafter="none")
    chosen = demo_prompts()[:prompts]
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    shown: list[RenderableType] = [legend(fast.most_speculative_tokens)]
    console.print(*shown)
    pairs = [_watch(console, plain, fast, prompt, params) for prompt in chosen]
    result = _race(console, plain, fast, chosen, params, repeats)
    table = results_table(result, fast.num_speculative_tokens)
    console.print(table)
    if svg is not None:
        _save_picture(svg, [*shown, *pairs[:PICTURE_PROMPTS], table])
    if not result.same:
        raise typer.Exit(1)


def _watch(console: Console, plain: LLM, fast: LLM, prompt: HeldOut, params: SamplingParams) -> RenderableType:
    """Both answers as they are written, one after the other; returns the finished picture."""
    sides = {"plain": (plain, Painter(plain.tokenizer)), "with MTP": (fast, Painter(fast.tokenizer))}
    panels = {name: answer_panel(name, painter.text) for name, (_, painter) in sides.items()}
    with Live(console=console, refresh_per_second=20, transient=True) as live:
        for name, (llm, painter) in sides.items():
            for passes, delta in enumerate(llm.stream(prompt.content, params), 1):
                painter.add(delta.token_ids, delta.origins)
                panels[name] = answer_panel(f"{name}: {passes} passes", painter.text)
                live.update(pair(prompt, list(panels.values())))
    finished = pair(prompt, list(panels.values()))
    console.print(finished)
    return finished


def answer_panel(title: str, text: Text) -> Panel:
    return Panel(text, title=title, title_align="left", border_style="dim")


def pair(prompt: HeldOut, panels: list[Panel]) -> RenderableType:
    """The question above, the two answers beside each other."""
    grid = Table.grid(expand=True)
    for _ in panels:
        grid.add_column(ratio=1)
    grid.add_row(*panels)
    return Group(Text(f"{prompt.question}  ", style="bold").append(prompt.source, style="dim not bold"), grid)


def _race(
    console: Console, plain: LLM, fast: LLM, prompts: list[HeldOut], params: SamplingParams, repeats: int
) -> Race:
    from rich.progress import Progress

    from paceline.bench.race import race

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring, in turn", total=repeats * len(prompts))
        return race(
            plain,
            fast,
            [p.content for p in prompts],
            params,
            repeats,
            progress=lambda: progress.update(task, advance=1),
        )


def results_table(result: Race, num_speculative_tokens: int | str) -> Table:
    """What speculation brought, in the words of the design."""
    stats = result.speculation
    table = Table(show_header=False, title=f"{len(result.plain)} prompts, medians of {len(result.rates_plain)} rounds")
    by_position = ", ".join(f"{rate:.2f}" for rate in stats.acceptance_by_position)
    table.add_row("same tokens", Text("yes", style="green") if result.same else Text("NO", style="red"))
    table.add_row("tokens drafted at a time", str(num_speculative_tokens))
    table.add_row("acceptance by position", by_position)
    table.add_row("acceptance length", f"{stats.acceptance_length:.2f} tokens a verification")
    table.add_row("plain decoding", f"{median(result.rates_plain):.0f} tokens/s")
    table.add_row("with MTP", f"{median(result.rates_fast):.0f} tokens/s")
    table.add_row("ratio", f"{result.ratio:.2f}x")
    return table


def _save_picture(path: str, shown: list[RenderableType]) -> None:
    """As SVG, drawn on a console of its own, so that the picture does not depend on the terminal; it loads no font."""
    canvas = Console(
        record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for thing in shown:
        canvas.print(thing)
    Path(path).write_text(re.sub(r"@font-face \{.*?\}", "", canvas.export_svg(title="paceline demo"), flags=re.DOTALL))
