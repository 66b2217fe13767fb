"""Figures, ratios and tables of a benchmark in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

SHORT = {"concurrency": "conc.", "acceptance rate": "accepted", "acceptance length": "length"}  # on a terminal
WORDS = ("arm", "source", "same text")  # columns that hold words


def table(*headings: str) -> Table:
    found = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        found.add_column(SHORT.get(heading, heading), justify="left" if heading in WORDS else "right")
    return found


def markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *lines)]


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def interval(ratio: dict[str, Any] | None) -> str:
    """Example: `1.52x [1.49, 1.55]`."""
    if ratio is None:
        return "-"
    sure = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return f"{ratio['median']:.2f}x{sure}"


def percentiles(spread: dict[str, float | None]) -> str:
    """Example: `1.8 / 2.4 / 3.1`."""
    return " / ".join(number(spread[name], 1) for name in ("p50", "p90", "p99"))


def shares(histogram: list[int]) -> str:
    """Example: shares([3, 0, 1]) = "0: 75 %, 2: 25 %"."""
    total = sum(histogram) or 1
    return ", ".join(f"{width}: {100 * count / total:.0f} %" for width, count in enumerate(histogram) if count)
