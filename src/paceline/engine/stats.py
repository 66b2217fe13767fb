"""What the engine counted and where its time went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from paceline.request import Request, SpeculationStats

HOST = ("schedule", "assemble", "verify", "commit")
PARTS = ("schedule", "draft", "assemble", "target", "verify", "commit")


@dataclass
class EngineStats:
    """Counts over all steps, and over the requests that ended. draft_quantization: what the drafter runs in.

    seconds: by part. draft: `propose`, `observe` and what they compute; target: the pass and its logits; the rest is
    host. On a GPU they tell when work was asked for, not when it was done."""

    steps: int = 0
    read: int = 0
    emitted: int = 0
    finished: int = 0
    preemptions: int = 0
    prefix_hit_tokens: int = 0
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    by_drafter: dict[str, SpeculationStats] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    draft_quantization: str | None = None
    policy: Callable[[], dict[str, Any]] = dict
    _last: float = 0.0

    def start(self) -> None:
        self._last = perf_counter()

    def lap(self, part: str) -> None:
        """The time since the last lap, or the start, belongs to `part`."""
        now = perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def split(self, seconds: Sequence[float]) -> None:
        """The time since the last lap is that of a call which says how long it drafted, ran the target, and did all
        else."""
        for part, spent in zip(("draft", "target", "verify"), seconds, strict=True):
            self.seconds[part] += spent
            self._last += spent

    def count_step(self, read: int, emitted: int, steps: int = 1) -> None:
        """A pass over `read` tokens, drafts included, that brought `emitted` tokens; or so many passes."""
        self.steps += steps
        self.read += read
        self.emitted += emitted

    def count_finished(self, request: Request) -> None:
        self.finished += 1
        self.preemptions += request.preemptions
        self.prefix_hit_tokens += request.prefix_hit_tokens
        self.speculation.add(request.stats)
        if request.drafter is not None:
            self.by_drafter.setdefault(request.drafter, SpeculationStats()).add(request.stats)

    @property
    def host_share(self) -> float:
        """The part of all time that was neither target nor drafter; 0 before the first step."""
        total = sum(self.seconds.values())
        return sum(self.seconds[part] for part in HOST) / total if total else 0.0

    def as_dict(self) -> dict[str, Any]:
        counts = ("steps", "read", "emitted", "finished", "preemptions", "prefix_hit_tokens", "host_share")
        plain = {name: getattr(self, name) for name in counts}
        drafters = {name: stats.as_dict() for name, stats in self.by_drafter.items()}
        about = {"by_drafter": drafters, "draft_quantization": self.draft_quantization}
        speculation = self.speculation.as_dict() | about
        return plain | {"seconds": dict(self.seconds), "speculation": speculation, "policy": self.policy()}
