"""The options that the commands of `paceline bench` share, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

WORK, LOAD, RESULT = "Workload", "Load", "Result"

Dataset = Annotated[
    str,
    typer.Option(
        help="heldout (bundled), random, or a file: ShareGPT .json, Spec-Bench or MT-Bench .jsonl, prompts a line.",
        rich_help_panel=WORK,
        metavar="NAME",
    ),
]
Source = Annotated[
    str | None,
    typer.Option(help="Only prompts of this source or category.", show_default="all", rich_help_panel=WORK),
]
InputLen = Annotated[
    int | None,
    typer.Option(
        help="Tokens of every prompt: longer ones are cut, others stand before shorter ones.",
        show_default="as they are; random 128",
        min=1,
        rich_help_panel=WORK,
    ),
]
OutputLen = Annotated[
    int | None, typer.Option(help="Tokens of every answer.", show_default="128", min=1, rich_help_panel=WORK)
]
NumRequests = Annotated[
    int | None,
    typer.Option(
        help="Requests a run.",
        show_default="3 times the concurrency, 32 at least",
        min=1,
        max=1 << 16,
        rich_help_panel=WORK,
    ),
]
Full = Annotated[
    bool,
    typer.Option("--full", help="The published workload: input 2500, output 1500, 80 requests.", rich_help_panel=WORK),
]
StopAtEos = Annotated[
    bool,
    typer.Option(
        "--stop-at-eos", help="End answers where the model ends them (--output-len at most).", rich_help_panel=WORK
    ),
]
Seed = Annotated[
    int, typer.Option(help="Of random prompts and, plus its number, of request.", min=0, rich_help_panel=WORK)
]
Repeats = Annotated[
    int, typer.Option(help="Rounds over all arms; medians are shown.", min=1, max=1000, rich_help_panel=LOAD)
]
Arms = Annotated[
    str | None,
    typer.Option(
        help="What is compared, the baseline first: none, auto, 1, 2, ..., ngram, mtp:2, ...",
        show_default="none,auto",
        rich_help_panel=LOAD,
        metavar="LIST",
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        help="Measure this OpenAI-compatible server instead of the engine.", rich_help_panel=LOAD, metavar="URL"
    ),
]
BaselineServer = Annotated[
    str | None,
    typer.Option(
        help="The baseline's own server. Without it Paceline's `speculation` field tells the arms apart.",
        rich_help_panel=LOAD,
        metavar="URL",
    ),
]
ServedModel = Annotated[
    str | None,
    typer.Option(help="What the server calls the model.", show_default="its first one", rich_help_panel=LOAD),
]
ApiKey = Annotated[
    str | None,
    typer.Option(help="The server's key.", envvar="PACELINE_API_KEY", show_default=False, rich_help_panel=LOAD),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Write the JSON here, after every repeat.", rich_help_panel=RESULT, metavar="FILE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the JSON instead of a table.", rich_help_panel=RESULT)]
Details = Annotated[
    bool,
    typer.Option("--details", help="Also percentiles, the steady state and the widths.", rich_help_panel=RESULT),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.", rich_help_panel=RESULT)]
SpecBench = Annotated[
    Path | None,
    typer.Option(
        help="Also write the first row's answers as Spec-Bench's JSONL, a file an arm: FILE-ARM.jsonl.",
        rich_help_panel=RESULT,
        metavar="FILE",
    ),
]


@dataclass(frozen=True)
class Work:
    """What is asked of every arm."""

    dataset: Dataset = "heldout"
    source: Source = None
    input_len: InputLen = None
    output_len: OutputLen = None
    stop_at_eos: StopAtEos = False
    seed: Seed = 0


@dataclass(frozen=True)
class Served:
    """A server that is measured instead of the engine."""

    server: Server = None
    baseline_server: BaselineServer = None
    served_model: ServedModel = None
    api_key: ApiKey = None


@dataclass(frozen=True)
class Result:
    """Where the figures go, and how many of them."""

    output: Output = None
    json_lines: Json = False
    details: Details = False
    markdown: Markdown = False


def addresses(served: Served) -> dict[str, Any]:
    """For the record; keys are nobody's business."""
    return {"server": served.server, "baseline_server": served.baseline_server}
