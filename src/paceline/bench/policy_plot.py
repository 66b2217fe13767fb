"""Replays of `bench policy` as a picture: what fixed numbers, the policy and the oracle reach over the load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.bench.plot_style import COLOURS, LOOK, style
from paceline.bench.plots import SUFFIXES
from paceline.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARMS = ("0", "1", "2", "3", "4", "auto", "oracle")


def draw_policy(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """rows: as `replay_all` gives them. out: a name that ends in .svg or .png. Raises `UserError` without matplotlib
    and for names that cannot be written."""
    if out.suffix not in SUFFIXES:
        raise UserError(f"--plot takes a name that ends in {' or '.join(SUFFIXES)}, not {out.name}.")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("Drawing needs matplotlib: pip install 'paceline[plot]'.") from None
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(8, 5.6), layout="constrained")
        left, right, below, width = figure.subplots(2, 2).flat
        for axes, shape in ((left, "steady"), (right, "ramp"), (below, "bursts")):
            _rates(axes, shape, [row for row in rows if row["shape"] == shape])
        _widths(width, rows)
        for axes in figure.axes:
            _load_axis(axes, sorted({row["concurrency"] for row in rows}))
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        try:
            figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}); choose another place.") from error


def _rates(axes: Axes, shape: str, rows: Sequence[dict[str, Any]]) -> None:
    """Tokens a second, against those without drafts."""
    loads = [row["concurrency"] for row in rows]
    for number, arm in enumerate(name for name in ARMS if name in rows[0]):
        look = style(number) | {"linewidth": 2 if arm == "auto" else 1}
        label = f"fixed {arm}" if arm.isdecimal() else arm
        axes.plot(loads, [row[arm] / row["0"] for row in rows], markersize=4, label=label, **look)
    axes.set_title(f"tokens/s, none = 1: {shape}", loc="left", fontsize=9)


def _widths(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for number, shape in enumerate(dict.fromkeys(row["shape"] for row in rows)):
        mine = [row for row in rows if row["shape"] == shape]
        look: dict[str, Any] = {"color": COLOURS[5], "marker": "osD"[number], "linestyle": ("-", "--", ":")[number]}
        axes.plot([row["concurrency"] for row in mine], [row["width"] for row in mine], label=shape, **look)
    axes.set_title("auto: drafts for each request and step", loc="left", fontsize=9)
    axes.legend(frameon=False)


def _load_axis(axes: Axes, loads: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(loads, [str(load) for load in loads])
    axes.minorticks_off()
    axes.set_xlabel("requests at a time")
    axes.grid(alpha=0.25, linewidth=0.5)
