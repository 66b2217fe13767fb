"""What a step is going to do, and what it did: host data between scheduler, drafter and target."""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.engine.stop import TextStream
from paceline.request import Request


@dataclass
class Plan:
    """One step. The batch holds the `ready` requests, then the `reading` ones: `requests`, in rows `rows`.

    ready: requests that decode (lag 1); widths[r]: the most drafts for ready[r]; rooms[r]: the most with what a grammar
    forces behind them. reading: requests that read so many
    tokens. ending: those readers, in order, that come to the end of their tokens; each is verified as a one-node tree.
    verified: those that get a verdict, in its order: ready, then ending.
    left: rows whose requests left since the last plan; drafters forget them once they absorbed what they observed."""

    ready: list[Request]
    widths: list[int]
    reading: list[tuple[Request, int]]
    left: list[int]
    rooms: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ending = [request for request, chunk in self.reading if request.lag == chunk]
        self.verified = self.ready + self.ending
        self.requests = self.ready + [request for request, _ in self.reading]
        self.rows = [request.row for request in self.requests]


@dataclass
class StepOutput:
    """What one step added to a request: `tokens` (in `request.tokens` by now); its last one brings a finish reason.

    text: the request's text so far, decoded when asked (None for a request without a decoder)."""

    request: Request
    tokens: list[int]
    text: TextStream | None
