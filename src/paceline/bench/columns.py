"""The columns of the benchmark, from the times at which tokens came.

TTFT: from sending a request to its first tokens. TPOT: from there to its last token, over the tokens that came after
the first ones. ITL: between two steps that brought a request tokens. All in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paceline.bench.runs import Answer

PERCENTILES = (50, 90, 99)
Columns = dict[str, Any]


def whole_run(answers: Sequence[Answer], concurrency: int | None) -> Columns:
    """From the first request's entry to the last token."""
    answered = [answer for answer in answers if answer.times]
    begin, end = min(answer.sent for answer in answered), max(answer.times[-1] for answer in answered)
    produced, read = (sum(getattr(answer, name) for answer in answered) for name in ("output_tokens", "prompt_tokens"))
    tpots = [value for answer in answered if (value := tpot(answer.times, answer.counts)) is not None]
    columns = {
        "requests": len(answered),
        "seconds": end - begin,
        "prompt_tokens": read,
        "output_tokens": produced,
        "requests_per_second": len(answered) / (end - begin),
        "output_tokens_per_second": produced / (end - begin),
        "total_tokens_per_second": (read + produced) / (end - begin),
        "ttft_ms": spread([1e3 * (answer.times[0] - answer.sent) for answer in answered]),
        "tpot_ms": spread([1e3 * value for value in tpots]),
        "itl_ms": spread([1e3 * gap for answer in answered for gap in np.diff(answer.times)]),
        "e2e_ms": spread([1e3 * (answer.times[-1] - answer.sent) for answer in answered]),
    }
    return columns | consistency(columns, concurrency)


def steady_window(answers: Sequence[Answer], concurrency: int) -> tuple[float, float] | None:
    """While exactly `concurrency` requests are there and all of the first ones write: from the moment when each of the
    first `concurrency` has its first token to the moment when a place stays empty, since the queue is empty.

    Example: 4 requests of 10 s each at concurrency 2, first tokens after 1 s: from 1 to 20 s. None when there is no
    such time."""
    if len(answers) < concurrency or not all(answer.times for answer in answers):
        return None
    in_order = sorted(answers, key=lambda answer: answer.sent)
    filled = max(answer.times[0] for answer in in_order[:concurrency])
    # Every end but the last `concurrency` ones lets another request in.
    emptied = sorted(answer.times[-1] for answer in answers)[len(answers) - concurrency]
    return (filled, emptied) if emptied > filled else None


def steady_state(answers: Sequence[Answer], concurrency: int) -> Columns | None:
    """The columns of the steady window. TPOT here is that of all tokens together, since a request may be cut by the
    window's edges to a few of them."""
    window = steady_window(answers, concurrency)
    if window is None:
        return None
    begin, end = window
    produced, spans, timed = 0, 0.0, 0
    for answer in answers:
        inside = [(t, n) for t, n in zip(answer.times, answer.counts, strict=True) if begin < t <= end]
        produced += sum(n for _, n in inside)
        if len(inside) > 1:
            spans += inside[-1][0] - inside[0][0]
            timed += sum(n for _, n in inside[1:])
    read = sum(answer.prompt_tokens for answer in answers if begin < answer.times[0] <= end)
    columns = {
        "seconds": end - begin,
        "output_tokens": produced,
        "output_tokens_per_second": produced / (end - begin),
        "total_tokens_per_second": (read + produced) / (end - begin),
        "ttft_ms": spread([1e3 * (answer.times[0] - answer.sent) for answer in answers if begin < answer.sent <= end]),
        "tpot_ms": {"mean": 1e3 * spans / timed} if timed else spread([]),
    }
    return columns | consistency(columns, concurrency)


def consistency(columns: Columns, concurrency: int | None) -> Columns:
    """Output tokens/s over concurrency / mean TPOT: 1 when all places always write. Less when places wait for first
    tokens or stay empty at the end: then a ratio of throughputs and one of TPOTs are different things. (A little more
    is possible: the mean of TPOTs gives slow requests more weight than the throughput does.)"""
    mean = columns["tpot_ms"]["mean"]
    known = concurrency is not None and mean
    return {"check": columns["output_tokens_per_second"] * mean / 1e3 / concurrency if known else None}


def tpot(times: Sequence[float], counts: Sequence[int]) -> float | None:
    """Seconds a token after the first step that brought some; None when nothing came after it."""
    return (times[-1] - times[0]) / sum(counts[1:]) if len(times) > 1 else None


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and percentiles (linear between neighbours); all None of nothing."""
    names = [f"p{percent}" for percent in PERCENTILES]
    if not values:
        return dict.fromkeys(("mean", *names))
    found = np.percentile(values, PERCENTILES)
    return dict(zip(("mean", *names), (float(np.mean(values)), *map(float, found)), strict=True))


def goodput(answers: Sequence[Answer], ttft_ms: float, tpot_ms: float, seconds: float) -> Columns:
    """Requests a second that kept both limits, and their share of all. seconds: of the whole run."""
    kept = [
        answer
        for answer in answers
        if answer.times
        and 1e3 * (answer.times[0] - answer.sent) <= ttft_ms
        and 1e3 * (tpot(answer.times, answer.counts) or 0.0) <= tpot_ms
    ]
    return {"goodput": len(kept) / seconds, "share_within_limits": len(kept) / len(answers)}
