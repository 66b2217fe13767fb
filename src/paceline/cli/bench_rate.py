"""`paceline bench rate`: requests that come when they come, and how many are served in time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import bench_options as shared
from paceline.cli import bench_setup as setup
from paceline.cli import options as opt
from paceline.cli import sampling
from paceline.cli.groups import grouped
from paceline.errors import UserError

if TYPE_CHECKING:
    from paceline.bench.columns import Columns
    from paceline.bench.rows import Level
    from paceline.bench.runs import Answer, Job

MAX_RATE = 1e6


@grouped
def bench_rate(
    *,
    request_rate: Annotated[
        str, typer.Option(help="Requests a second, a row of the table each.", rich_help_panel=shared.LOAD)
    ] = "1,2,4,8",
    ttft_ms: Annotated[
        float, typer.Option(help="Limit of the time to the first token.", min=0.0, rich_help_panel=shared.LOAD)
    ] = 1000.0,
    tpot_ms: Annotated[
        float, typer.Option(help="Limit of the mean time per further token.", min=0.0, rich_help_panel=shared.LOAD)
    ] = 50.0,
    work: shared.Work,
    num_requests: Annotated[
        int, typer.Option(help="Requests a run.", min=1, max=1 << 16, rich_help_panel=shared.WORK)
    ] = 64,
    arms: shared.Arms = None,
    repeats: shared.Repeats = 3,
    served: shared.Served,
    result: shared.Result,
    shape: sampling.Shape,
    drafting: opt.Drafting,
    modules: opt.Modules,
    max_num_seqs: Annotated[int, typer.Option(help="Most requests at a time.", min=1, rich_help_panel=opt.ENGINE)] = 80,
    max_num_batched_tokens: opt.MaxNumBatchedTokens = None,
    model: opt.ModelChoice,
) -> None:
    """Compare plain decoding with speculation under Poisson arrivals: latency, and goodput under its limits.

    Goodput counts the requests a second whose TTFT and TPOT both kept their limits. Exit 1 if a token differs."""
    setup.check_result(result)
    rates, asked = parse_rates(request_rate), setup.workload(work, shape)
    names = setup.arm_names(arms, drafting, modules)
    from paceline.bench.workload import make_jobs

    sizes = opt.Sizes(max_num_batched_tokens=max_num_batched_tokens)
    options = opt.engine_options(drafting, modules, sizes)
    subject = setup.subject(model, served, options)
    jobs = make_jobs(asked, num_requests, subject.tokenizer, subject.context)
    sides = setup.arms_of(names, subject, max_num_seqs, setup.longest(jobs), options, served)
    limits = {"max_num_seqs": max_num_seqs, "ttft_ms": ttft_ms, "tpot_ms": tpot_ms}
    settings = {"num_requests": num_requests, "repeats": repeats, **shared.addresses(served), "engine": options}
    record = setup.new_record("rate", subject.facts(model.quantization), sides, asked, result, settings | limits)
    for _ in setup.run_all(record, sides, levels(rates, jobs, work.seed, ttft_ms, tpot_ms), repeats, result):
        pass


def parse_rates(text: str) -> list[float]:
    """`1,2.5` to [1.0, 2.5]; raises `UserError` for what is no list of rates."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [inf]
    if not all(0 < rate <= MAX_RATE for rate in rates):
        raise UserError(f"--request-rate takes requests a second, as in 1,2.5,4, not {text[:60]!r}.")
    return list(dict.fromkeys(rates))


def levels(rates: Sequence[float], jobs: Sequence[Job], seed: int, ttft_ms: float, tpot_ms: float) -> list[Level]:
    """The same requests at each rate."""
    from paceline.bench.arrivals import poisson
    from paceline.bench.rows import Level
    from paceline.bench.runs import Open

    extra = partial(_goodput, ttft_ms=ttft_ms, tpot_ms=tpot_ms)
    return [
        Level({"rate": rate, "requests": len(jobs)}, jobs, Open(poisson(rate, len(jobs), seed)), extra)
        for rate in rates
    ]


def _goodput(answers: Sequence[Answer], columns: Columns, *, ttft_ms: float, tpot_ms: float) -> Columns:
    from paceline.bench.columns import goodput

    return goodput(answers, ttft_ms, tpot_ms, columns["seconds"])
