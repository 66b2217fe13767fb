"""What a step costs: a table measured at start-up, corrected by every step since.

A step is one pass of the target (with everything around it: scheduling, assembling, verification) and one pass of the
drafter for each depth. The pass is a function of the requests in it, of the rows beyond one for each, and of the
context; between measured points it is interpolated. Steps of the staircase are kept as far as they were measured.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import exp, log
from typing import Any

from paceline.errors import UserError

_COMMON, _OWN = 0.05, 0.04  # how fast the common correction and a point's own follow in the long run
_SLOWER, _QUICKER = 0.3, 1.5  # the most that one step moves them, in logarithms: other processes only ever add time


@dataclass(frozen=True)
class CostTable:
    """requests [I]: ascending. extra [I][J]: rows beyond one a request, ascending from 0; seconds [I][J]: of the step
    without drafting, at next to no context. per_context: seconds for each token of context of each request; its further
    rows read it with the first.
    drafting [D]: for each depth the points (requests, seconds), ascending."""

    requests: list[int]
    extra: list[list[int]]
    seconds: list[list[float]]
    per_context: float
    drafting: list[list[tuple[int, float]]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(raw: Any) -> CostTable:
        """Raises `UserError` for what is no table: it may come from a file."""
        try:
            table = CostTable(
                [int(n) for n in raw["requests"]],
                [[int(n) for n in row] for row in raw["extra"]],
                [[float(x) for x in row] for row in raw["seconds"]],
                float(raw["per_context"]),
                [[(int(n), float(x)) for n, x in points] for points in raw["drafting"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("This is no table of costs; measure it again.") from error
        table.check()
        return table

    def check(self) -> None:
        """Raises `UserError` unless lengths agree, points ascend and seconds are above 0."""
        shapes = len(self.requests) == len(self.extra) == len(self.seconds) > 0 and all(
            len(extra) == len(seconds) > 0 for extra, seconds in zip(self.extra, self.seconds, strict=True)
        )
        knots = [self.requests, *self.extra, *([n for n, _ in points] for points in self.drafting)]
        ascending = all(a < b for knot in knots for a, b in pairwise(knot))
        times = [*(x for row in self.seconds for x in row), *(x for points in self.drafting for _, x in points)]
        sane = all(0 < x < 1e6 for x in times) and self.per_context >= 0
        if not (shapes and ascending and sane and all(self.drafting) and all(row[0] == 0 for row in self.extra)):
            raise UserError("This table of costs is damaged; measure it again.")


class Costs:
    """A table and what was learned since: one factor for all passes, which a slow moment of the machine moves, and one
    for each point, which moves where the table was wrong. Kept as logarithms, so that ratios are what is learned."""

    def __init__(self, table: CostTable) -> None:
        self.table = table
        self._common = 0.0
        self._own = [[0.0] * len(row) for row in table.seconds]
        self._drafting = [0.0] * len(table.drafting)
        self._drafts = [0] * len(table.drafting)
        self._visits = [[0.0] * len(row) for row in table.seconds]

    def passes(self, requests: int, reading: int, context: float, most: int) -> list[float]:
        """Seconds of a step without drafting, for 0 .. most drafts, beside `reading` rows of prompts.

        context: tokens, summed over the requests."""
        table = self.table
        i, share = _place(table.requests, requests)
        curves = [(share, i + 1), (1 - share, i)] if share else [(1.0, i)]
        found = [0.0] * (most + 1)
        for weight, k in curves:
            scale = [weight * x * exp(own) for x, own in zip(table.seconds[k], self._own[k], strict=True)]
            for b, x in enumerate(curve(table.extra[k], scale, reading, reading + most)):
                found[b] += x
        factor, fixed = exp(self._common), table.per_context * context
        return [(x + fixed) * factor for x in found]

    def drafts(self, depth: int, most: int) -> list[float]:
        """Seconds of making draft number `depth` + 1 for 0 .. most requests. Beyond the table as its last depth."""
        d = min(depth, len(self.table.drafting) - 1)
        points, factor = self.table.drafting[d], exp(self._common + self._drafting[d])
        knots, seconds = [n for n, _ in points], [x * factor for _, x in points]
        return [0.0, *curve(knots, seconds, 1, max(most, 1))]

    def learn_pass(self, requests: int, extra: int, context: float, seconds: float) -> None:
        """A step with so many rows beyond one a request took so long."""
        expected = self.passes(requests, extra, context, 0)[0]
        error = _error(seconds, expected)
        self._common += _COMMON * max(-_SLOWER, error)
        i, share = _place(self.table.requests, requests)
        for k, weight in ((i, 1 - share), (i + 1, share)):
            if weight:
                j, part = _place(self.table.extra[k], extra)
                self._correct(k, j, weight * (1 - part), error)
                if part:
                    self._correct(k, j + 1, weight * part, error)

    def learn_draft(self, depth: int, requests: int, seconds: float) -> None:
        d = min(depth, len(self._drafting) - 1)
        expected = self.drafts(depth, requests)[requests]
        self._drafts[d] += 1
        self._drafting[d] += max(2 * _OWN, 0.5 / self._drafts[d]) * _error(seconds, expected)

    def _correct(self, k: int, j: int, share: float, error: float) -> None:
        """The first visits move a point most: its measurement may have met a slow moment."""
        self._visits[k][j] += share
        self._own[k][j] += max(_OWN, 0.5 / (1 + self._visits[k][j])) * share * error


def _error(seconds: float, expected: float) -> float:
    return max(-_QUICKER, min(_SLOWER, log(max(seconds, 1e-9) / expected)))


def _place(knots: Sequence[int], x: int) -> tuple[int, float]:
    """Where x lies: knots[i] and the share of the way to knots[i + 1]; at the ends the end itself."""
    i = bisect(knots, x) - 1
    if i < 0:
        return 0, 0.0
    if i >= len(knots) - 1:
        return len(knots) - 1, 0.0
    return i, (x - knots[i]) / (knots[i + 1] - knots[i])


def curve(knots: Sequence[int], values: Sequence[float], start: int, stop: int) -> list[float]:
    """The values at start .. stop, linear between the knots. Below the first one its value; beyond the last one it
    rises as on the average (a rise of the last two alone would be mostly noise)."""
    found = [values[0]] * max(0, min(knots[0], stop + 1) - start)
    for i in range(len(knots) - 1):
        low, high = max(start, knots[i]), min(stop + 1, knots[i + 1])
        slope = (values[i + 1] - values[i]) / (knots[i + 1] - knots[i])
        found += [values[i] + slope * (x - knots[i]) for x in range(low, high)]
    span = knots[-1] - knots[0]
    slope = max(0.0, values[-1] - values[0]) / span if span else values[-1] / max(knots[-1], 1)
    found += [values[-1] + slope * (x - knots[-1]) for x in range(max(start, knots[-1]), stop + 1)]
    return found
