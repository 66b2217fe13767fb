"""The page that Prometheus reads, of a server that has done something."""

from __future__ import annotations

from time import monotonic

from paceline.outputs import Timing
from paceline.request import SamplingParams, SpeculationStats
from paceline.serve.job import Drafts, Job
from paceline.serve.messages import Finished, Piece, Stats
from paceline.serve.metrics import Metrics

TIMING = Timing(1.0, 1.0, 1.0)
HOST = ("schedule", "assemble", "verify", "commit")


def busy_page() -> str:
    """The metrics of a server that has answered one speculated request."""
    metrics, spoken = Metrics("m"), SpeculationStats()
    spoken.record(3, 2, 3)
    job = Job("a", [1, 2], SamplingParams(), Drafts("mtp", None))
    end = Finished(reason="stop", seed=0, prefix_hit_tokens=1, speculation=spoken, timing=TIMING)
    metrics.arrived(job)
    metrics.piece(job, Piece(job="a", index=0, tokens=[5], origins=[0], moments=[monotonic()]))
    metrics.piece(job, Piece(job="a", index=0, tokens=[6], origins=[0], moments=[monotonic()], finished=end))
    seconds = dict.fromkeys(("draft", "target", *HOST), 0.5)
    stats = Stats(running=1, waiting=0, blocks_used=1, blocks=4, steps=3, preemptions=0, seconds=seconds)
    return metrics.text(stats, True).decode()
