"""`paceline inspect`: what a directory of weights is, and what is odd about it, from headers alone."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.garbage import uncollected

if TYPE_CHECKING:
    from paceline.inspection.report import Report
    from paceline.inspection.tally import Part


def inspect(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR",
            help="Directory or Hugging Face id of a checkpoint, or a directory of exported MTP modules.",
            show_default="the bundled model",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object; its fields are in docs/inspect.md.")
    ] = False,
) -> None:
    """Tell what a checkpoint is: family, sizes, types, MTP modules, memory, drafters; and warn of what is odd."""
    with uncollected():
        from paceline.checkpoint.resolve import resolve_model
        from paceline.inspection.report import inspect as report_of

        report = report_of(resolve_model(model))
        gc.freeze()  # nor is there anything to find at exit
    if as_json:
        print(json.dumps(report.to_dict() | {"drafters": drafters(report)}))
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    rows = dict(_rows(report))
    for name, text in rows.items():
        console.print(f"{name:<{max(map(len, rows))}}   {printable(text)}", soft_wrap=True)
    for warning in report.warnings:
        console.print(printable(f"warning: {warning}"), style="yellow", soft_wrap=True)


def drafters(report: Report) -> list[str]:
    """Who can guess for this model; modules that travel alone draft for the model they were taken from."""
    from paceline.drafters import drafter_names

    if report.target is None:
        return ["mtp"] if report.usable_modules else []
    known = drafter_names() if report.supported else []
    return [name for name in known if name != "mtp" or report.usable_modules]


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    yield "directory", report.directory
    alone = "" if report.layout == "checkpoint" else f", MTP modules alone in the {report.layout} layout"
    yield "family", (report.family or "not told") + alone + ("" if report.supported else ", not supported")
    if report.target is not None:
        yield "parameters", _parameters(report.target)
        yield "layers, context", f"{_count(report.layers)}, {_count(report.context)} tokens"
    stored = ", ".join(f"{word} {size(kind.bytes)}" for word, kind in report.stored.items())
    yield "stored", f"{stored}; quantisation: {report.quantization or 'none'}"
    if report.target is not None:
        yield "memory", _memory(report.target, report.dtype)
    yield "MTP modules", _modules(report)
    if report.mtp is not None:
        yield "MTP parameters", _parameters(report.mtp)
        yield "MTP memory", _memory(report.mtp, report.dtype)
    beside = " (with --draft-model, beside its model)" if report.target is None else ""
    yield "drafters", (", ".join(drafters(report)) or "none can run") + beside


def _parameters(part: Part) -> str:
    active = "unknown" if part.active_parameters is None else short(part.active_parameters)
    return f"{short(part.parameters)}, active per token: {active}"


def _memory(part: Part, dtype: str) -> str:
    weights = f"weights {size(part.bytes_stored)} as stored, {size(part.bytes_in_dtype)} in {dtype}"
    return weights if part.kv_bytes is None else f"{weights}; KV cache {size(part.kv_bytes)} per 1k tokens"


def _modules(report: Report) -> str:
    """Example: `1 of 2 complete; incomplete: 2`."""
    if not report.modules:
        return "none" if report.supported else "unknown"
    promised = [module for module in report.modules if module.promised]
    kinds = {
        "incomplete": [m.depth for m in promised if not m.complete],
        "not in config.json": [m.depth for m in report.modules if not m.promised],
    }
    text = f"{len(promised) - len(kinds['incomplete'])} of {len(promised)} complete"
    return text + "".join(f"; {kind}: {', '.join(map(str, depths))}" for kind, depths in kinds.items() if depths)


def printable(text: str) -> str:
    """Names come from files of strangers, and must not steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def short(number: int) -> str:
    """Example: 671026419200 is `671.0 B`."""
    return _scaled(number, {" B": 1e9, " M": 1e6, " k": 1e3}, "")


def size(number: int) -> str:
    """Bytes in decimal units, as disks and file listings have them. Example: 70272000 is `70.3 MB`."""
    return _scaled(number, {" GB": 1e9, " MB": 1e6, " kB": 1e3}, " B")


def _scaled(number: int, units: Mapping[str, float], bare: str) -> str:
    return next((f"{number / unit:.1f}{name}" for name, unit in units.items() if number >= unit), f"{number}{bare}")


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"
