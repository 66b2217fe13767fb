"""A histogram for what happens at every step: what is observed is kept as it is, and counted when there is much of it
or Prometheus asks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

LABEL = "model_name"
MOST_KEPT = 4096  # durations


class Durations(Collector):
    """bounds: seconds, rising; what is observed counts in every bucket whose bound it does not exceed."""

    def __init__(self, name: str, text: str, model: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._model, self._bounds = name, text, model, tuple(bounds)
        self._kept: list[float] = []  # and not counted
        self._counts = [0.0] * len(bounds)
        self._total, self._sum = 0.0, 0.0

    def observe(self, seconds: Iterable[float]) -> None:
        self._kept += seconds
        if len(self._kept) > MOST_KEPT:
            self._count()

    def collect(self) -> Iterator[HistogramMetricFamily]:
        self._count()
        family = HistogramMetricFamily(self._name, self._text, labels=[LABEL])
        buckets = [*zip(map(str, self._bounds), self._counts, strict=True), ("+Inf", self._total)]
        family.add_metric([self._model], buckets, self._sum)
        yield family

    def _count(self) -> None:
        rising, self._kept = sorted(self._kept), []
        self._counts = [
            count + bisect_right(rising, bound) for count, bound in zip(self._counts, self._bounds, strict=True)
        ]
        self._total += len(rising)
        self._sum += sum(rising)
