"""Medians of repeats, and how sure a ratio is."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt
from statistics import mean, median, stdev
from typing import Any

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T_LIMIT = 1.96


def t_quantile(degrees: int) -> float:
    """Of Student's t at 97.5 %, within 0.3 % beyond the table. Example: t_quantile(4) = 2.776."""
    return _T[degrees - 1] if degrees <= len(_T) else _T_LIMIT + 2.4 / degrees


def ratio(ours: Sequence[float | None], base: Sequence[float | None]) -> dict[str, Any] | None:
    """ours[r] / base[r] over the repeats: the median, and the 95 % confidence interval of the geometric mean, by
    Student's t on the logarithms. Each ratio is of two runs of the same repeat, which are neighbours in time.

    `low` and `high` are None for a single repeat; all is None when a repeat has nothing to compare."""
    pairs = [(a, b) for a, b in zip(ours, base, strict=True) if a and b]
    if not pairs or len(pairs) < len(ours):
        return None
    ratios = [a / b for a, b in pairs]
    if len(ratios) == 1:
        return {"median": ratios[0], "low": None, "high": None}
    logs = [log(value) for value in ratios]
    # mean +- t * s / sqrt(n), on logarithms
    half = t_quantile(len(logs) - 1) * stdev(logs) / sqrt(len(logs))
    return {"median": median(ratios), "low": exp(mean(logs) - half), "high": exp(mean(logs) + half)}


def over_rows(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """rows[i][r]: the ratio in repeat r of row i; rows were measured apart, each with a noise of its own. The geometric
    mean in which each row counts the same, and its 95 % confidence interval by Welch and Satterthwaite: many rows make
    up for few repeats. `low` and `high` are None where a row has a single repeat."""
    logs = [[log(value) for value in row] for row in rows]
    middle = mean(map(mean, logs))
    if min(map(len, logs)) < 2:
        return {"median": exp(middle), "low": None, "high": None}
    shares = [stdev(row) ** 2 / len(row) for row in logs]  # of the variance of the rows' sum
    if not any(shares):
        return dict.fromkeys(("median", "low", "high"), exp(middle))
    # (sum of v)^2 / sum of v^2 / (n - 1)
    degrees = sum(shares) ** 2 / sum(v * v / (len(row) - 1) for v, row in zip(shares, logs, strict=True))
    half = t_quantile(max(1, int(degrees))) * sqrt(sum(shares)) / len(rows)
    return {"median": exp(middle), "low": exp(middle - half), "high": exp(middle + half)}


def medians(columns: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Of every number in dictionaries of the same shape, also nested ones; None where one of them has none."""
    found = [entry for entry in columns if entry is not None]
    if not found or len(found) < len(columns):
        return None
    return {name: _middle([entry[name] for entry in found]) for name in found[0]}


def _middle(values: list[Any]) -> Any:
    if any(value is None for value in values):
        return None
    return medians(values) if isinstance(values[0], dict) else median(values)
