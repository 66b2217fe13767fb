"""The options that the commands of `paceline bench` share, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from paceline.cli.groups import option

WORK, LOAD, RESULT = "Workload", "Load", "Result"
_work, _load, _result = partial(option, WORK), partial(option, LOAD), partial(option, RESULT)

Dataset = Annotated[
    str,
    _work(
        "heldout (bundled), random, or a file: ShareGPT .json, Spec-Bench or MT-Bench .jsonl, prompts a line.",
        metavar="NAME",
    ),
]
Source = Annotated[str | None, _work("Only prompts of this source or category.", show_default="all")]
InputLen = Annotated[
    int | None,
    _work(
        "Tokens of every prompt: longer ones are cut, others stand before shorter ones.",
        show_default="625 in bench table, else as they are; random 128",
        min=1,
    ),
]
OutputLen = Annotated[int | None, _work("Tokens of every answer.", show_default="375 in bench table, else 128", min=1)]
NumRequests = Annotated[
    int | None, _work("Requests a run.", show_default="3 times the concurrency, 32 at least", min=1, max=1 << 16)
]
Full = Annotated[bool, _work("The published workload: input 2500, output 1500, 80 requests.", "--full")]
Short = Annotated[bool, _work("Prompts as long as they are and, unless told, answers of 128 tokens.", "--short")]
StopAtEos = Annotated[bool, _work("End answers where the model ends them (--output-len at most).", "--stop-at-eos")]
Seed = Annotated[int, _work("Of random prompts and, plus its number, of request.", min=0)]
Repeats = Annotated[int, _load("Rounds over all arms; medians are shown.", min=1, max=1000)]
Arms = Annotated[
    str | None,
    _load(
        "What is compared, the baseline first: none, auto, 1, 2, ..., ngram, mtp:2, ...",
        show_default="none,auto",
        metavar="LIST",
    ),
]
Server = Annotated[str | None, _load("Measure this OpenAI-compatible server instead of the engine.", metavar="URL")]
BaselineServer = Annotated[
    str | None,
    _load("The baseline's own server. Without it Paceline's `speculation` field tells the arms apart.", metavar="URL"),
]
ServedModel = Annotated[str | None, _load("What the server calls the model.", show_default="its first one")]
ApiKey = Annotated[str | None, _load("The server's key.", envvar="PACELINE_API_KEY", show_default=False)]
Output = Annotated[Path | None, _result("Write the JSON here, after every repeat.", metavar="FILE")]
Json = Annotated[bool, _result("Print the JSON instead of a table.", "--json")]
Details = Annotated[bool, _result("Also percentiles, the steady state and the widths.", "--details")]
Markdown = Annotated[bool, _result("Print the table in Markdown.", "--markdown")]
SpecBench = Annotated[
    Path | None,
    _result("Also write the first row's answers as Spec-Bench's JSONL, a file an arm: FILE-ARM.jsonl.", metavar="FILE"),
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
