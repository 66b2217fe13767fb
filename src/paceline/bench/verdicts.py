"""What a table says in the end: the engine's own choice against the best fixed number, and source by source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from paceline.bench.intervals import over_rows, ratio

OWN_CHOICE = "auto"
Rates = Sequence[float | None]  # output tokens/s of each repeat


def best_fixed(rates: Mapping[str, Rates]) -> dict[str, Any] | None:
    """The engine's own choice against the best fixed number of drafts, none at all among them: by output tokens/s. The
    best one is chosen by the same runs, which is in its favour. None without something to compare."""
    fixed = _fixed([name for name in rates if all(rates[name])])
    if not rates.get(OWN_CHOICE) or not fixed:
        return None
    best = max(fixed, key=lambda name: median(rate or 0.0 for rate in rates[name]))
    return {"arm": best, "output": ratio(rates[OWN_CHOICE], rates[best])}


def _fixed(arms: Iterable[str]) -> list[str]:
    """The fixed numbers among them, and none; nothing where there is no number."""
    found = [name for name in arms if name.isdecimal() or name == "none"]
    return found if any(map(str.isdecimal, found)) else []


def judged_arm(rows: Sequence[dict[str, Any]]) -> str | None:
    """The engine's own choice where it was measured, else the first arm beside the baseline."""
    _, *others = rows[0]["arms"]
    return OWN_CHOICE if OWN_CHOICE in others else next(iter(others), None)


def by_source(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each concurrency of a table by source: one arm's ratio to the baseline over all sources (geometric mean, each
    source counting the same) and on the worst source; the same to the best fixed number, that of each source its own.
    Nothing for another table."""
    measured = [row for row in rows if "source" in row and row["repeats"]]
    if not measured or (arm := judged_arm(measured)) is None:
        return []
    levels = dict.fromkeys(row["concurrency"] for row in measured)
    return [_over_sources([row for row in measured if row["concurrency"] == level], arm) for level in levels]


def _over_sources(rows: Sequence[dict[str, Any]], arm: str) -> dict[str, Any]:
    base = next(iter(rows[0]["arms"]))
    return {
        "concurrency": rows[0]["concurrency"],
        "sources": len(rows),
        "arm": arm,
        "together": over_rows(_ratios(rows, arm, base)),
        "worst": _worst(rows, lambda row: row["arms"][arm]["speedup"]["output"]),
        "together_to_best_fixed": _to_best_fixed(rows),
        "worst_to_best_fixed": _worst(rows, lambda row: (row["best_fixed"] or {}).get("output")),
        "same": all(found["same"] for row in rows for found in row["arms"].values()),
    }


def _ratios(rows: Sequence[dict[str, Any]], arm: str, base: str) -> list[list[float]]:
    """Of output tokens/s, in each repeat of each row."""
    pairs = [(row["arms"][arm]["by_repeat"], row["arms"][base]["by_repeat"]) for row in rows]
    return [[_rate(one) / _rate(other) for one, other in zip(*pair, strict=True)] for pair in pairs]


def _rate(repeat: dict[str, Any]) -> float:
    return float(repeat["whole"]["output_tokens_per_second"])


def _to_best_fixed(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """As `best_fixed`, of the number that is best over all rows."""
    base, *others = rows[0]["arms"]
    fixed = _fixed([base, *others])
    if OWN_CHOICE not in others or not fixed:
        return None
    best = max(fixed, key=lambda name: over_rows(_ratios(rows, name, base))["median"])
    return {"arm": best, "output": over_rows(_ratios(rows, OWN_CHOICE, best))}


def _worst(rows: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Any:
    found = [{"source": row["source"], **value} for row in rows if (value := of(row)) is not None]
    return min(found, key=lambda one: one["median"], default=None)
