"""What is believed of several ways to go, from a few noisy looks at some of them: a Gaussian, kept by Kalman's rules.

Way k takes exp(level + error_k) times what was forecast. The level is everybody's (a machine that is slow for a while)
and wanders. The errors are the table's: way 0 has none beside the level, and each further draft adds one of its own, so
that neighbours share what is learned of one of them. What is not looked at for long is forgotten: the belief goes back
to the prior.

    prior    cov(error_i, error_j) = table^2 (1 + log2(1 + min(drafts_i, drafts_j))) / 2
    a look   y = level + error_k + noise        belief += cov(., y) / var(y) (y - as believed)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, isfinite, log2, sqrt
from typing import Any

_TABLE, _LEVEL = 0.2, 0.2  # standard deviations at first, in logarithms: of the first draft's error, of the level
_WANDERS, _LASTS = 0.01, 100000  # of the level in one step; steps after which e^-1 of the errors is known
_OUTLIER = 3.0  # what is farther off than so many standard deviations counts as that

Matrix = list[list[float]]


class Belief:
    """`mean`, `cov`: of the level, then of each further way's error."""

    def __init__(self, prior: Matrix, step: int = 0) -> None:
        """prior: see `prior_of`. step: when this is believed."""
        self._prior, self._step = prior, step
        self.mean = [0.0] * len(prior)
        self.cov = [list(row) for row in prior]
        self.cov[0][0] = _LEVEL**2

    @staticmethod
    def of_errors(prior: Matrix, mean: Sequence[float], cov: Sequence[Sequence[float]]) -> Belief | None:
        """What was known of the errors at another time, when the level was another. None for what is no Gaussian of so
        many ways."""
        found, ways = Belief(prior), len(prior) - 1
        numbers = [*mean, *(x for row in cov for x in row)]
        if len(numbers) != ways * (ways + 1) or len(mean) != ways or not all(isfinite(x) for x in numbers):
            return None
        if not all(0 <= cov[k][k] <= prior[k + 1][k + 1] for k in range(ways)):
            return None
        found.mean[1:] = map(float, mean)
        for row, errors in zip(found.cov[1:], cov, strict=True):
            row[1:] = map(float, errors)
        return found

    def errors(self) -> dict[str, Any]:
        """As `of_errors` takes them."""
        return {"mean": self.mean[1:], "cov": [row[1:] for row in self.cov[1:]]}

    def copy(self) -> Belief:
        found = Belief(self._prior, self._step)
        found.mean, found.cov = list(self.mean), [list(row) for row in self.cov]
        return found

    def error(self, way: int) -> float:
        """Against the level: ways are compared by it."""
        return self.mean[way] if way else 0.0

    def doubt(self, way: int) -> float:
        """Of its error: the standard deviation."""
        return sqrt(max(0.0, self.cov[way][way])) if way else 0.0

    def expected(self, way: int) -> float:
        """Of the next look."""
        return self.mean[0] + self.error(way)

    @property
    def doubts(self) -> float:
        """Of all errors together."""
        return sum(self.doubt(way) for way in range(len(self.cov)))

    def pass_time(self, step: int) -> None:
        """What is believed at a later step: the level wanders, errors are forgotten."""
        passed, self._step = step - self._step, step
        self.cov[0][0] += _WANDERS**2 * passed
        self.forget(1 - exp(-passed / _LASTS))

    def forget(self, part: float) -> None:
        """A part of what is known of the errors."""
        keep = 1 - part
        self.mean[1:] = [keep * x for x in self.mean[1:]]
        for row, prior in zip(self.cov[1:], self._prior[1:], strict=True):
            row[:] = [keep * row[0], *(p + keep**2 * (x - p) for x, p in zip(row[1:], prior[1:], strict=True))]
        self.cov[0][1:] = [row[0] for row in self.cov[1:]]

    def learn(self, way: int, seen: float, noise: float) -> float:
        """A look at one way. noise: its variance. Returns how far off the belief was."""
        toward = self._toward(way)
        spread = self.variance(way) + noise
        off, most = seen - self.expected(way), _OUTLIER * sqrt(spread)
        gain = max(-most, min(most, off)) / spread
        self.mean = [x + gain * c for x, c in zip(self.mean, toward, strict=True)]
        for row, a in zip(self.cov, toward, strict=True):
            row[:] = [x - a * b / spread for x, b in zip(row, toward, strict=True)]
        return off

    def told_apart(self, way: int, other: int, noise: float) -> float:
        """By how much a look at `way` would move the difference between the two: its standard deviation."""
        toward = self._toward(way)
        apart = (toward[way] if way else 0.0) - (toward[other] if other else 0.0)
        return abs(apart) / sqrt(self.variance(way) + noise)

    def variance(self, way: int) -> float:
        """Of what will be seen of it, but for noise."""
        toward = self._toward(way)
        return max(0.0, toward[0] + toward[way] if way else toward[0])

    def _toward(self, way: int) -> list[float]:
        """Covariance of everything with what is seen of this way."""
        return [row[0] + row[way] for row in self.cov] if way else [row[0] for row in self.cov]


def prior_of(drafts: Sequence[int]) -> Matrix:
    """Covariance of the errors of ways with so many drafts, ascending from 0. Each doubling adds half of what the first
    draft did."""
    amounts = [(1 + log2(1 + each)) / 2 if each else 0.0 for each in drafts]
    return [[_TABLE**2 * min(a, b) for b in amounts] for a in amounts]
