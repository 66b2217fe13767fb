"""Rows of a benchmark for people: tables on the terminal, or one in Markdown. And how a run ends, early or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from paceline.cli.bench_format import interval, markdown, number, percentiles, shares, table
from paceline.cli.bench_sources import sentence, source_markdown, source_tables

if TYPE_CHECKING:
    from paceline.bench.record import Record
    from paceline.cli.bench_options import Result

FIGURES = ("mean TPOT ms", "mean TTFT ms", "output tok/s", "total tok/s")
RATIOS = ("speed-up", "by TPOT", "steady state")
SPECULATION = ("acceptance rate", "acceptance length", "mean width")
GOODPUT = ("goodput req/s",)


@contextmanager
def finishing(record: Record, result: Result, exact: Sequence[str] | None = None) -> Iterator[None]:
    """Prints what was measured, whatever ended it; exit 1 if an arm said something else than the reference. exact: the
    arms that must not, all by default."""
    try:
        yield
        record.complete = True
        record.save()
    finally:
        if result.json_lines:
            print(json.dumps(record.as_dict()))
        elif any(row["repeats"] for row in record.rows):
            print_rows(record.as_dict(), result.markdown, result.details)
    arms = [(name, arm) for row in record.rows for name, arm in row["arms"].items()]
    if not all(arm["same"] for name, arm in arms if exact is None or name in exact):
        raise typer.Exit(1)


def print_rows(record: dict[str, Any], as_markdown: bool = False, details: bool = False) -> None:
    """Only rows with a whole repeat."""
    rows = [row for row in record["rows"] if row["repeats"]]
    sources = record["by_source"]
    if as_markdown:
        print("\n".join([*(source_markdown(rows) if sources else markdown_table(rows)), *map(sentence, sources)]))
        return
    console = Console()
    console.print(title(record | {"rows": rows}), highlight=False)
    shown = [*(source_tables(rows) if sources else main_tables(rows)), *(detail_tables(rows) if details else [])]
    for one in filter(lambda one: one.row_count, shown):
        console.print(one)
    for summary in sources:
        console.print(sentence(summary), highlight=False)
    if cached := sum(arm["cached_tokens"] for row in rows for arm in row["arms"].values()):
        console.print(f"{cached} prompt tokens came from a prefix cache: start the server with --no-prefix-cache.")


def main_tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Figures of each arm; ratios to the baseline; the engine's own choice against the best fixed number."""
    goodput = GOODPUT if any("goodput" in arm["whole"] for arm in rows[0]["arms"].values()) else ()
    figures = table(*headings_of(rows[0]), "arm", *FIGURES, *goodput, "check", "same text")
    ratios = table(*headings_of(rows[0]), "arm", *RATIOS, *SPECULATION)
    for row in rows:
        for index, (name, arm) in enumerate(row["arms"].items()):
            figures.add_row(*where_of(row), name, *figures_of(arm), *_limits(arm), _check(arm), same(arm))
            if index:
                ratios.add_row(*where_of(row), name, *ratios_of(arm), *speculation_of(arm))
    return [figures, ratios, best_table(rows)]


def best_table(rows: list[dict[str, Any]]) -> Table:
    """The engine's own choice against the best fixed number, where both were measured."""
    found = table(*headings_of(rows[0]), "best fixed number", "auto to that")
    for row in rows:
        if row["best_fixed"] is not None:
            found.add_row(*where_of(row), row["best_fixed"]["arm"], interval(row["best_fixed"]["output"]))
    return found


def detail_tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Percentiles of the whole run; the steady state; acceptance and widths."""
    where = headings_of(rows[0])
    spread = table(*where, "arm", *(f"{name} ms p50 / p90 / p99" for name in ("TPOT", "TTFT", "ITL")))
    steady = table(*where, "arm", "steady state s", *FIGURES, "check")
    widths = table(*where, "arm", "accepted by position", "share of each width")
    for row in rows:
        for name, arm in row["arms"].items():
            start = (*where_of(row), name)
            spread.add_row(*start, *(percentiles(arm["whole"][f"{key}_ms"]) for key in ("tpot", "ttft", "itl")))
            if arm["steady"] is not None:
                steady.add_row(
                    *start, number(arm["steady"]["seconds"], 1), *figures_of(arm, "steady"), _check(arm, "steady")
                )
            told = arm["speculation"]
            if told is not None and told["drafted"]:
                by_position = " ".join(number(rate, 2) for rate in told["acceptance_by_position"])
                widths.add_row(*start, by_position, shares(told["width_histogram"]))
    return [spread, steady, widths]


def title(record: dict[str, Any]) -> str:
    model, machine = record["model"], record["machine"]
    repeats = min(row["repeats"] for row in record["rows"])
    return (
        f"{model['name']}, {model['dtype']}, {machine['processor']}, {machine['threads']} threads; medians of "
        f"{repeats} repeats, ratios to {record['settings']['arms'][0]} with 95 % confidence intervals"
    )


def headings_of(row: dict[str, Any]) -> list[str]:
    """What tells rows apart."""
    return [name for name in ("source", "concurrency", "rate") if name in row]


def where_of(row: dict[str, Any]) -> list[str]:
    return [str(row[name]) for name in headings_of(row)]


def figures_of(arm: dict[str, Any], part: str = "whole") -> list[str]:
    """part: the whole run, or the steady state."""
    columns = arm[part]
    means = [number(columns[name]["mean"], 2) for name in ("tpot_ms", "ttft_ms")]
    return [*means, *(number(columns[f"{name}_tokens_per_second"], 1) for name in ("output", "total"))]


def ratios_of(arm: dict[str, Any]) -> list[str]:
    return [interval(arm["speedup"][name]) for name in ("output", "tpot", "steady")]


def speculation_of(arm: dict[str, Any]) -> list[str]:
    """Nothing where nothing was drafted."""
    told = arm["speculation"]
    if told is None or not told["drafted"]:
        return [""] * len(SPECULATION)
    names = (("acceptance_rate", 3), ("acceptance_length", 2), ("mean_width", 2))
    return [number(told[name], digits) for name, digits in names]


def same(arm: dict[str, Any]) -> str:
    return "yes" if arm["same"] else f"NO ({arm['different']})"


def _check(arm: dict[str, Any], part: str = "whole") -> str:
    return number(arm[part]["check"], 2)


def _limits(arm: dict[str, Any]) -> list[str]:
    return [number(arm["whole"]["goodput"], 2)] if "goodput" in arm["whole"] else []


def markdown_table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each arm of a row beside the baseline, figures as `baseline / arm`; for the baseline where it is
    alone."""
    lines = []
    for row in rows:
        (base_name, base), *others = row["arms"].items()
        for name, arm in others or [(base_name, base)]:
            pairs = [f"{a} / {b}" for a, b in zip(figures_of(base), figures_of(arm), strict=True)]
            ends = [*ratios_of(arm), *speculation_of(arm), same(arm)]
            lines.append([*where_of(row), f"{base_name} / {name}", *pairs, *ends])
    return markdown([*headings_of(rows[0]), "arms", *FIGURES, *RATIOS, *SPECULATION, "same text"], lines)
