"""What a step costs: a table measured at start-up.

A step is one pass of the target (with everything around it: scheduling, assembling, verification) and one pass of the
drafter for each depth. The pass is a function of the requests in it, of the rows beyond one for each, and of the
context; between measured points it is interpolated. Steps of the staircase are kept as far as they were measured.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from paceline.errors import UserError


@dataclass(frozen=True)
class CostTable:
    """requests [I]: ascending. extra [I][J]: rows beyond one a request, ascending from 0; seconds [I][J]: of the step
    without drafting, at no context. contexts: tokens of context in all, ascending, and the seconds that they take: more
    for each where no cache holds them. per_row_context: seconds for each token that a further row of its request reads.
    drafting [D]: for each depth the points (requests, seconds), ascending. absorbing: what drafters take for each token
    of a prompt, with 1, 2, ... drafts for its request. at_once: as drafters have it."""

    requests: list[int]
    extra: list[list[int]]
    seconds: list[list[float]]
    contexts: list[tuple[int, float]]
    drafting: list[list[tuple[int, float]]]
    per_row_context: float = 0.0
    absorbing: list[float] = field(default_factory=list)
    at_once: bool = False

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
                [(int(n), float(x)) for n, x in raw["contexts"]],
                [[(int(n), float(x)) for n, x in points] for points in raw["drafting"]],
                float(raw["per_row_context"]),
                [float(x) for x in raw["absorbing"]],
                bool(raw["at_once"]),
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
        knots = [self.requests, *self.extra, *([n for n, _ in points] for points in [self.contexts, *self.drafting])]
        ascending = all(a < b for knot in knots for a, b in pairwise(knot))
        ascending = ascending and all(a[1] <= b[1] and b[0] > 0 for a, b in pairwise([(0, 0.0), *self.contexts]))
        times = [*(x for row in self.seconds for x in row), *(x for points in self.drafting for _, x in points)]
        rates = [self.per_row_context, *self.absorbing, *(x for _, x in self.contexts)]
        sane = all(0 < x < 1e6 for x in times) and all(0 <= x < 1e6 for x in rates)
        if not (shapes and ascending and sane and all(self.drafting) and all(row[0] == 0 for row in self.extra)):
            raise UserError("This table of costs is damaged; measure it again.")


class Costs:
    """What steps take as the table says. What the clock says beside that is the `Referee`'s."""

    def __init__(self, table: CostTable) -> None:
        self.table = table
        self._rows: dict[int, list[float]] = {}  # by requests: seconds at no context, for 0, 1, ... further rows
        self._drafts: dict[tuple[int, int], list[float]] = {}

    def passes(self, requests: int, reading: int, context: float, most: int) -> list[float]:
        """Seconds of a step without drafting, for 0 .. most drafts, beside `reading` rows of prompts.

        context: tokens, summed over the requests."""
        found = self._rows.get(requests, [])
        if len(found) <= reading + most:
            found = self._rows[requests] = self._at_no_context(requests, reading + most)
        fixed, more = along(self.table.contexts, context), self.table.per_row_context * context / max(requests, 1)
        return [found[b] + fixed + more * b for b in range(reading, reading + most + 1)]

    def drafts(self, depth: int, most: int) -> list[float]:
        """Seconds of making draft number `depth` + 1 for 0 .. most requests. Beyond the table as its last depth."""
        depth = min(depth, len(self.table.drafting) - 1)
        found = self._drafts.get((depth, most))
        if found is None:
            points = self.table.drafting[depth]
            found = [0.0, *curve([n for n, _ in points], [x for _, x in points], 1, max(most, 1))]
            self._drafts[depth, most] = found
        return found

    def absorbing(self, drafts: int) -> float:
        """Seconds of drafters for each token of a prompt. Beyond the table as its last entry."""
        known = self.table.absorbing
        return known[min(drafts, len(known)) - 1] if drafts and known else 0.0

    def step(self, requests: int, extra: int, context: float, drafted: Sequence[int]) -> float:
        """Seconds of a whole step. extra: rows beyond one a request; drafted: by depth, for how many requests."""
        drafting = sum(self.drafts(depth, requests)[count] for depth, count in enumerate(drafted))
        return self.passes(requests, extra, context, 0)[0] + drafting

    def _at_no_context(self, requests: int, most: int) -> list[float]:
        table = self.table
        i, share = _place(table.requests, requests)
        found = [0.0] * (most + 1)
        for weight, k in ((1 - share, i), (share, i + 1)):
            if weight:
                for b, x in enumerate(curve(table.extra[k], table.seconds[k], 0, most)):
                    found[b] += weight * x
        return found


def along(points: Sequence[tuple[float, float]], x: float) -> float:
    """From (0, 0) on linear between the points, and beyond them as between the last two. Without points 0.

    Example: along([(10, 1.0), (20, 3.0)], 30) = 5.0."""
    before, value = 0.0, 0.0
    for i, (knot, known) in enumerate(points, 1):
        slope = (known - value) / (knot - before)
        if x <= knot or i == len(points):
            return value + slope * (x - before)
        before, value = knot, known
    return 0.0


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
