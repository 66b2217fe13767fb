"""A table by source as a picture: a line a source, the worst one below, each arm's speed-up with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paceline.bench.plot_style import SLOWER, arm_words, room, style, whiskers
from paceline.bench.verdicts import judged_arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]


def draw_sources(figure: Figure, rows: Sequence[Row]) -> None:
    """A panel for each concurrency, side by side; the sources in the order of the first one."""
    levels = list(dict.fromkeys(row["concurrency"] for row in rows))
    arm = judged_arm(rows)
    first = sorted((row for row in rows if row["concurrency"] == levels[0]), key=lambda row: _median(row, arm))
    order = {row["source"]: place for place, row in enumerate(first)}
    panels = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    for axes, level in zip(panels, levels, strict=True):
        _panel(axes, [row for row in rows if row["concurrency"] == level and row["source"] in order], order, arm)
        axes.set_title(f"{level} in flight", loc="left", fontsize=9)
        axes.set_yticks(range(len(order)), list(order))
        axes.set_xlabel("speed-up in output tokens/s")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), frameon=False)


def _panel(axes: Axes, rows: Sequence[Row], order: dict[str, int], judged: str | None) -> None:
    """Intervals for the judged arm alone: with all of them nothing could be read."""
    places = [float(order[row["source"]]) for row in rows]
    for number, arm in enumerate(rows[0]["arms"]):
        if not number:
            continue
        look = style(number)
        size = {"markersize": 5.0} if arm == judged else {"markersize": 4.0, "markerfacecolor": "none"}
        axes.plot([_median(row, arm) for row in rows], places, linestyle="", label=arm_words(arm), **look, **size)
        if arm == judged:
            known = [row["arms"][arm]["speedup"]["output"] or {"low": None, "high": None} for row in rows]
            whiskers(axes, places, known, look["color"], flat=True)
    low, high = room(_median(row, arm) for row in rows for arm in row["arms"])
    axes.axvspan(low, 1.0, color=SLOWER, zorder=0)
    axes.axvline(1.0, color="0.5", linewidth=0.8, zorder=0.5)
    axes.set_xlim(low, high)
    axes.grid(alpha=0.25, linewidth=0.5)


def _median(row: Row, arm: str | None) -> float:
    ratio = row["arms"][arm]["speedup"]["output"] if arm else None
    return float("nan") if ratio is None else float(ratio["median"])
