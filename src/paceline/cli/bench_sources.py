"""A table by source for people: a line a source, the worst one first, and a sentence for each concurrency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from paceline.bench.verdicts import judged_arm
from paceline.cli.bench_format import interval, markdown, number, table

Row = dict[str, Any]


def source_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """One for each concurrency."""
    for level, mine in _levels(rows):
        found = table(*_headings(mine))
        found.title = f"{level} in flight, ratios to {next(iter(mine[0]['arms']))}"
        for row in _worst_first(mine):
            found.add_row(*_cells(row, mine))
        yield found


def source_markdown(rows: Sequence[Row]) -> list[str]:
    """All of them as one table, the concurrency first."""
    levels = list(_levels(rows))
    lines = [[str(level), *_cells(row, mine)] for level, mine in levels for row in _worst_first(mine)]
    return markdown(["concurrency", *_headings(levels[0][1])], lines)


def sentence(summary: dict[str, Any]) -> str:
    """Example: `8 in flight: auto 1.12x [1.10, 1.14] of plain decoding over 19 sources, 1.01x [0.99, 1.03] on the worst
    (tldr); of the best fixed number 1.00x [0.99, 1.01] (1 for all), of that of each source 0.96x [0.94, 0.98] on the
    worst (wordnet); all texts the same`."""
    best, worst_best = summary["together_to_best_fixed"], summary["worst_to_best_fixed"]
    parts = [
        f"{summary['concurrency']} in flight: {summary['arm']} {interval(summary['together'])} of plain decoding over "
        f"{summary['sources']} sources, {_at_worst(summary['worst'])}"
    ]
    if best is not None:
        parts.append(
            f"of the best fixed number {interval(best['output'])} ({best['arm']} for all), of that of each source "
            f"{_at_worst(worst_best)}"
        )
    return "; ".join([*parts, "all texts the same" if summary["same"] else "TEXTS DIFFER"])


def _at_worst(worst: dict[str, Any] | None) -> str:
    return f"{interval(worst)} on the worst" + (f" ({worst['source']})" if worst else "")


def _levels(rows: Sequence[Row]) -> Iterator[tuple[int, list[Row]]]:
    for level in dict.fromkeys(row["concurrency"] for row in rows):
        yield level, [row for row in rows if row["concurrency"] == level]


def _worst_first(rows: Sequence[Row]) -> list[Row]:
    arm = judged_arm(rows)
    return sorted(
        rows, key=lambda row: (row["arms"][arm]["speedup"]["output"] or {"median": 0.0})["median"] if arm else 0
    )


def _headings(rows: Sequence[Row]) -> list[str]:
    base, *others = rows[0]["arms"]
    judged = judged_arm(rows)
    rest = [name for name in others if name != judged]
    fixed = [f"{judged} to the best fixed"] if rows[0]["best_fixed"] else []
    return ["source", f"{base} tok/s", *([judged] if judged else []), *rest, *fixed, "same text"]


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """Intervals where something is claimed; of the fixed numbers the medians."""
    base, *others = row["arms"]
    judged = judged_arm(rows)
    ratios = {name: row["arms"][name]["speedup"]["output"] for name in others}
    rest = [_median(ratios[name]) for name in others if name != judged]
    best = row["best_fixed"]
    fixed = [f"{interval(best['output'])} ({best['arm']})"] if best else []
    same = "yes" if all(arm["same"] for arm in row["arms"].values()) else "NO"
    plain = number(row["arms"][base]["whole"]["output_tokens_per_second"], 0)
    return [row["source"], plain, *([interval(ratios[judged])] if judged else []), *rest, *fixed, same]


def _median(ratio: dict[str, Any] | None) -> str:
    return "-" if ratio is None else f"{ratio['median']:.2f}x"
