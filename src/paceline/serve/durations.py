"""A histogram for what happens at every step: observing is a bisection, and Prometheus's form is made when asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

LABEL = "model_name"


class Durations(Collector):
    """bounds: seconds, rising; what is observed counts in the first bucket whose bound it does not exceed."""

    def __init__(self, name: str, text: str, model: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._model, self._bounds = name, text, model, tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)  # the last one is of those above all bounds
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=[LABEL])
        names = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        family.add_metric([self._model], buckets, self._sum)
        yield family
