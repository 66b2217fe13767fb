"""What all pictures of a benchmark have in common: they read in print, on a dark page and to the colour-blind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart; black is the baseline's. Each has its own marker.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"
SLOWER = "0.95"  # the grey behind ratios below 1
LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paceline",  # the same figures, the same file
    "font.size": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.facecolor": "white",  # a page may be dark
}


def style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def arm_words(name: str) -> str:
    return "plain decoding" if name == "none" else f"k = {name}" if name.isdecimal() else name


def room(ratios: Iterable[float]) -> tuple[float, float]:
    """Ends of an axis of ratios: all of them, and 1. An interval may reach beyond: two repeats are sure of nothing."""
    known = [ratio for ratio in ratios if isfinite(ratio)]
    return min([0.95, *(0.85 * ratio for ratio in known)]), max([1.05, *(1.15 * ratio for ratio in known)])


def circumstances(record: dict[str, Any]) -> str:
    """Example: `paceline-16m, bfloat16, temperature 0, AMD EPYC, threads 2`."""
    model, machine, settings = record["model"], record["machine"], record["settings"]
    heat = f"temperature {settings['temperature']:g}" if "temperature" in settings else None
    parts = (model["name"], model["dtype"], heat, machine["processor"], f"threads {machine['threads']}")
    return ", ".join(filter(None, parts))


def whiskers(
    axes: Axes, places: Sequence[float], ratios: Sequence[dict[str, Any]], color: str, flat: bool = False
) -> None:
    """Confidence intervals, upright or flat; nothing where a ratio has none."""
    known = [(place, r["low"], r["high"]) for place, r in zip(places, ratios, strict=True) if r["low"] is not None]
    if known:
        at, lows, highs = zip(*known, strict=True)
        (axes.hlines if flat else axes.vlines)(at, lows, highs, colors=color, linewidth=1.0)
        for ends in (lows, highs):
            x, y = (ends, at) if flat else (at, ends)
            axes.plot(x, y, linestyle="", marker="|" if flat else "_", markersize=5, color=color)
