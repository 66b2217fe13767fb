"""What Prometheus reads at `/metrics`. Names follow vLLM's, with `paceline:` in front, where it has the thing.

Counts of requests are made here from the pieces that come; those of the engine from its `Stats`, and go on when a new
engine begins again at zero.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from paceline.request import SpeculationStats
from paceline.serve.counts import Counts, Kind
from paceline.serve.durations import LABEL, Durations
from paceline.serve.job import NOBODY, Job
from paceline.serve.messages import Finished, Piece, Stats

PREFIX = "paceline:"
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
ITL = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
E2E = (
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)


@dataclass
class _Watch:
    """When an answer was asked for, and when its last tokens came."""

    asked: float
    last: float | None = None


class Metrics:
    """A registry of its own, so that several servers may live in one process."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._watches: dict[tuple[str, int], _Watch] = {}
        self._before: Stats | None = None
        self._generated = 0  # tokens that the counter has not got yet
        self._gauges = {
            name: self._gauge(name, text)
            for name, text in (
                ("num_requests_running", "Answers that the engine is working on."),
                ("num_requests_waiting", "Answers that wait for their first step."),
                ("kv_cache_usage_perc", "Share of the KV cache's blocks in use, 0 to 1."),
                ("engine_up", "1 while there is an engine, 0 while it is being started again."),
            )
        }
        counts = Counts(PREFIX, model, _COUNTERS)
        self.registry.register(counts)
        self._count = counts.add
        self._ttft = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", TTFT)
        self._itl = self._histogram("inter_token_latency_seconds", "Between steps that brought tokens.", ITL)
        self._e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the end of the answer.", E2E)

    def arrived(self, job: Job) -> None:
        now = time.monotonic()
        self._watches |= {(job.id, index): _Watch(now) for index in range(job.params.n)}

    def left(self, job: Job) -> None:
        """The job is over; answers that had not ended were aborted."""
        for index in range(job.params.n):
            if self._watches.pop((job.id, index), None) is not None:
                self._count("request_success", 1, "abort")

    def piece(self, job: Job, piece: Piece) -> None:
        watch = self._watches.get((job.id, piece.index))
        if watch is None:
            return
        moments = piece.moments if watch.last is None else [watch.last, *piece.moments]
        if watch.last is None:
            self._ttft.observe(moment - watch.asked for moment in moments[:1])
        self._itl.observe([moment - before for before, moment in pairwise(moments)])
        watch.last = moments[-1] if moments else None
        self._generated += len(piece.tokens)
        if piece.finished is not None:
            del self._watches[job.id, piece.index]
            self._e2e.observe([time.monotonic() - watch.asked])
            self._finished(job, piece.finished)

    def _finished(self, job: Job, finished: Finished) -> None:
        self._count("request_success", 1, finished.reason)
        self._count("prompt_tokens", len(job.prompt))
        self._count("prefix_cache_queries", len(job.prompt))
        self._count("prefix_cache_hits", finished.prefix_hit_tokens)
        if job.drafts.drafter != NOBODY:
            self._speculated(job.drafts.drafter, finished.speculation)

    def _speculated(self, drafter: str, stats: SpeculationStats) -> None:
        self._count("spec_decode_num_drafts", stats.verifications, drafter)
        self._count("spec_decode_num_draft_tokens", stats.drafted, drafter)
        self._count("spec_decode_num_accepted_tokens", stats.accepted, drafter)
        for width, count in enumerate(stats.widths):
            self._count("spec_decode_num_drafts_per_width", count, drafter, str(width))
        for name, counts in (("draft", stats.offered), ("accepted", stats.taken)):
            for position, count in enumerate(counts):
                self._count(f"spec_decode_num_{name}_tokens_per_pos", count, drafter, str(position))

    def restarted(self) -> None:
        self._count("engine_restarts", 1)

    def text(self, stats: Stats | None, alive: bool) -> bytes:
        """The page that Prometheus reads."""
        self._gauges["engine_up"].set(alive)
        self._count("generation_tokens", self._generated)
        self._generated = 0
        if stats is None:
            for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
                self._gauges[name].set(0)
        else:
            self._look(stats)
        return generate_latest(self.registry)

    def _look(self, stats: Stats) -> None:
        self._gauges["num_requests_running"].set(stats.running)
        self._gauges["num_requests_waiting"].set(stats.waiting)
        self._gauges["kv_cache_usage_perc"].set(stats.blocks_used / stats.blocks)
        before, self._before = self._before, stats
        if before is None or stats.steps < before.steps:
            before = stats.model_copy(
                update={"steps": 0, "preemptions": 0, "seconds": dict.fromkeys(stats.seconds, 0.0)}
            )
        self._count("engine_steps", stats.steps - before.steps)
        self._count("num_preemptions", stats.preemptions - before.preemptions)
        for part, seconds in stats.seconds.items():
            self._count("engine_seconds", max(0.0, seconds - before.seconds[part]), part)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(PREFIX + name, text, [LABEL], registry=self.registry).labels(self._model)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Durations:
        made = Durations(PREFIX + name, text, self._model, bounds)
        self.registry.register(made)
        return made


_COUNTERS: tuple[Kind, ...] = (
    ("request_success", "Answers that ended, by reason.", ("finished_reason",)),
    ("prompt_tokens", "Tokens of prompts whose answers ended.", ()),
    ("generation_tokens", "Tokens generated.", ()),
    ("prefix_cache_queries", "Tokens of prompts looked up in the prefix cache.", ()),
    ("prefix_cache_hits", "Tokens of prompts that the prefix cache held.", ()),
    ("num_preemptions", "Answers that gave their blocks to others for a while.", ()),
    ("spec_decode_num_drafts", "Verifications of answers that were speculated.", ("drafter",)),
    ("spec_decode_num_drafts_per_width", "Verifications, by the drafts in them.", ("drafter", "width")),
    ("spec_decode_num_draft_tokens", "Tokens drafted.", ("drafter",)),
    ("spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.", ("drafter",)),
    ("spec_decode_num_draft_tokens_per_pos", "Tokens drafted, by position.", ("drafter", "position")),
    ("spec_decode_num_accepted_tokens_per_pos", "Accepted tokens, by position.", ("drafter", "position")),
    ("engine_steps", "Steps of the engine.", ()),
    ("engine_seconds", "Where the engine's time went.", ("part",)),
    ("engine_restarts", "How often the engine died and was started again.", ()),
)
