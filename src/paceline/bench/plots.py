"""A benchmark's rows as a picture: speed-up, times and widths over the load, or speed-ups by source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.bench.plot_sources import draw_sources
from paceline.bench.plot_style import LOOK, SLOWER, arm_words, circumstances, room, style, whiskers
from paceline.bench.verdicts import judged_arm
from paceline.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
BUBBLE = 180.0  # area of a circle that stands for all verifications, in points squared


@dataclass(frozen=True)
class Series:
    """One arm over the load. base: the others are compared with it. judged: it is the one in question."""

    label: str
    base: bool
    judged: bool
    loads: list[float]
    arms: list[dict[str, Any]]
    style: dict[str, Any]


@dataclass(frozen=True)
class Panel:
    title: str
    draw: Callable[[Axes, Series], None]
    log: bool = False
    one: bool = False  # a line at 1, where nothing is gained


def draw(records: dict[str, dict[str, Any]], out: Path) -> list[Path]:
    """Writes `out`.png and `out`.svg of records by label, or `out` alone where it has one of these endings. Raises
    `UserError` without matplotlib, and for records that do not belong in one picture."""
    kinds = {record["kind"] for record in records.values()}
    if len(kinds) > 1 or not kinds <= PANELS.keys():
        raise UserError("A picture is of tables or of rates: give files of `bench table`, or files of `bench rate`.")
    (kind,) = kinds
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("Drawing needs matplotlib: pip install 'paceline[plot]'.") from None
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(8, 5.6), layout="constrained")
        try:
            if any("source" in row for record in records.values() for row in record["rows"]):
                draw_sources(figure, _rows_by_source(records))
            else:
                _fill(figure, list(all_series(records)), kind)
            words = dict.fromkeys(map(circumstances, records.values()))
            figure.supxlabel("; ".join(words), fontsize=7.5, color="0.35")
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError("A row of these files is not as `paceline bench` writes it; measure again.") from error
        written = [out] if out.suffix in SUFFIXES else [out.with_name(out.name + suffix) for suffix in SUFFIXES]
        try:
            for path in written:
                figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}); choose another place.") from error
    return written


def all_series(records: dict[str, dict[str, Any]]) -> Iterator[Series]:
    """One for each arm of each record. Raises `UserError` when there is none."""
    number = 0
    for label, record in records.items():
        key = "rate" if record["kind"] == "rate" else "concurrency"
        rows = [row for row in record["rows"] if row["repeats"]]
        for index, arm in enumerate(rows[0]["arms"] if rows else ()):
            words = f"{arm_words(arm)}, {label}" if len(records) > 1 else arm_words(arm)
            loads, mine = [row[key] for row in rows], [row["arms"][arm] for row in rows]
            yield Series(words, not index, arm == judged_arm(rows), loads, mine, style(number))
            number += 1
    if not number:
        raise UserError("There is no row to draw yet: let the benchmark finish a repeat.")


def _rows_by_source(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Raises `UserError` for several records: a picture by source is full with one."""
    if len(records) > 1:
        raise UserError("A table by source fills a picture: give it alone.")
    (record,) = records.values()
    return [row for row in record["rows"] if row["repeats"]]


def _fill(figure: Figure, series: Sequence[Series], kind: str) -> None:
    name = "requests in flight" if kind == "table" else "requests a second"
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS[kind], strict=True):
        for one in series:
            panel.draw(axes, one)
        if panel.one:
            ratios = (arm["speedup"]["output"] for one in series for arm in one.arms)
            low, high = room(ratio["median"] for ratio in ratios if ratio)
            axes.axhspan(low, 1.0, color=SLOWER, zorder=0)
            axes.axhline(1.0, color="0.5", linewidth=0.8, zorder=0.5)
            axes.set_ylim(low, high)
        axes.set_title(panel.title, loc="left", fontsize=9)
        axes.set_xscale("log", base=2)
        ticks = sorted({load for one in series for load in one.loads})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        low, high = axes.dataLim.intervaly
        if panel.log and high > 4 * low > 0:  # within two octaves there would hardly be a tick
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.grid(alpha=0.25, linewidth=0.5)
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), frameon=False)


def _line(axes: Axes, series: Series, values: Sequence[float | None], **more: Any) -> None:
    points = [(x, y) for x, y in zip(series.loads, values, strict=True) if y is not None]
    if points:
        xs, ys = zip(*points, strict=True)
        settings: dict[str, Any] = {"linewidth": 1.2, "markersize": 4, "label": series.label} | series.style | more
        axes.plot(xs, ys, **settings)


def _figure(*path: str) -> Callable[[Axes, Series], None]:
    """Draws the number that lies at `path` in an arm."""

    def values(arm: Any) -> Any:
        for name in path:
            arm = None if arm is None else arm[name]
        return arm

    return lambda axes, series: _line(axes, series, [values(arm) for arm in series.arms])


def _speedup(axes: Axes, series: Series) -> None:
    """Of throughput: the whole run with its confidence intervals, dashed the steady state."""
    if series.base:
        return
    known = [
        (x, found) for x, arm in zip(series.loads, series.arms, strict=True) if (found := arm["speedup"]["output"])
    ]
    whiskers(axes, [x for x, _ in known], [found for _, found in known], series.style["color"])
    _line(axes, series, [(arm["speedup"]["output"] or {}).get("median") for arm in series.arms])
    if not series.judged:
        return
    steady = [(arm["speedup"]["steady"] or {}).get("median") for arm in series.arms]
    _line(axes, series, steady, linestyle="--", marker="", linewidth=0.8, label=f"{series.label}, steady state")


def _widths(axes: Axes, series: Series) -> None:
    """The mean; circles show how many of the verifications had each width."""
    told = [arm["speculation"] or {} for arm in series.arms]
    if not any(one.get("drafted") for one in told):
        return
    for x, one in zip(series.loads, told, strict=True):
        total = one.get("verifications") or 1
        shares = [(k, count / total) for k, count in enumerate(one.get("width_histogram", [])) if count]
        if shares:
            ks, sizes = zip(*shares, strict=True)
            areas = [BUBBLE * size for size in sizes]
            axes.scatter([x] * len(ks), ks, s=areas, color=series.style["color"], alpha=0.2, linewidths=0)
    _line(axes, series, [one.get("mean_width") for one in told])


_TPOT = Panel("mean time per output token, ms", _figure("whole", "tpot_ms", "mean"), log=True)
_WIDTH = Panel("drafted tokens a verification (circles: how often)", _widths)
PANELS = {
    "table": (
        Panel("speed-up in output tokens/s (dashed: steady state)", _speedup, one=True),
        _TPOT,
        Panel("output tokens/s", _figure("whole", "output_tokens_per_second")),
        _WIDTH,
    ),
    "rate": (
        Panel("goodput, requests/s within the limits", _figure("whole", "goodput")),
        _TPOT,
        Panel("mean time to first token, ms", _figure("whole", "ttft_ms", "mean"), log=True),
        _WIDTH,
    ),
}
