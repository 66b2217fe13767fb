"""What a measured run leaves behind: for every request when its tokens came. Times are seconds on one clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from paceline.request import SamplingParams, SpeculationStats

Tick = Callable[[int], None]  # hears of tokens as they come, for progress bars


@dataclass(frozen=True)
class Job:
    """One request of a workload. name: of its prompt; source: what kind of text it is."""

    prompt: list[int]
    params: SamplingParams
    name: str
    source: str


@dataclass
class Answer:
    """sent: when the request entered (in an open loop: when it was due). times[i]: when a step brought counts[i]
    tokens. tokens: their ids, None from a server, which tells only the text. cached: prompt tokens that a prefix cache
    held. stats: None when nobody counted."""

    sent: float
    prompt_tokens: int
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    tokens: list[int] | None = None
    text: str | None = None
    cached: int = 0
    stats: SpeculationStats | None = None

    @property
    def output_tokens(self) -> int:
        return sum(self.counts)

    @property
    def content(self) -> object:
        """What must be the same whatever the drafter: token ids where there are any."""
        return self.text if self.tokens is None else self.tokens


class Load(Protocol):
    """When requests may enter."""

    def due(self, index: int, in_flight: int) -> float:
        """Seconds after the start at which request `index` may enter; inf: not before another one ends."""

    def lanes(self, requests: int) -> int:
        """How many of them may be under way at a time."""


@dataclass(frozen=True)
class Closed:
    """Always `concurrency` requests in flight: as one ends the next enters."""

    concurrency: int

    def due(self, index: int, in_flight: int) -> float:
        return 0.0 if in_flight < self.concurrency else inf

    def lanes(self, requests: int) -> int:
        return min(self.concurrency, requests)


@dataclass(frozen=True)
class Open:
    """Requests enter at given seconds after the start, whoever is still there."""

    offsets: tuple[float, ...]

    def due(self, index: int, in_flight: int) -> float:
        return self.offsets[index]

    def lanes(self, requests: int) -> int:
        return requests


class Arm(Protocol):
    """One side of a comparison: something that answers requests."""

    @property
    def name(self) -> str: ...

    def run(self, jobs: Sequence[Job], load: Load, tick: Tick) -> list[Answer]:
        """All answers, in the order of the jobs. Raises `UserError` when they cannot be had."""
