"""Counters for what happens at every request: adding is one look-up, and Prometheus's form is made when asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from paceline.serve.durations import LABEL

Kind = tuple[str, str, tuple[str, ...]]  # name, what it counts, names of its labels beside the model's


class Counts(Collector):
    """kinds: all counters that there are. One without labels of its own is there before anything happens."""

    def __init__(self, prefix: str, model: str, kinds: Sequence[Kind]) -> None:
        self._prefix, self._model, self._kinds = prefix, model, tuple(kinds)
        self._counts: dict[str, dict[tuple[str, ...], float]] = {
            name: {} if labels else {(): 0.0} for name, _, labels in kinds
        }

    def add(self, name: str, amount: float, *labels: str) -> None:
        counts = self._counts[name]
        counts[labels] = counts.get(labels, 0.0) + amount

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, text, labels in self._kinds:
            family = CounterMetricFamily(self._prefix + name, text, labels=[LABEL, *labels])
            for values, count in self._counts[name].items():
                family.add_metric([self._model, *values], count)
            yield family
