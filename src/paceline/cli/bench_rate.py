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
from paceline.errors import UserError

if TYPE_CHECKING:
    from paceline.bench.columns import Columns
    from paceline.bench.rows import Level
    from paceline.bench.runs import Answer, Job

MAX_RATE = 1e6


def bench_rate(
    request_rate: Annotated[
        str, typer.Option(help="Requests a second, a row of the table each.", rich_help_panel=shared.LOAD)
    ] = "1,2,4,8",
    ttft_ms: Annotated[
        float, typer.Option(help="Limit of the time to the first token.", min=0.0, rich_help_panel=shared.LOAD)
    ] = 1000.0,
    tpot_ms: Annotated[
        float, typer.Option(help="Limit of the mean time per further token.", min=0.0, rich_help_panel=shared.LOAD)
    ] = 50.0,
    dataset: shared.Dataset = "heldout",
    source: shared.Source = None,
    input_len: shared.InputLen = None,
    output_len: shared.OutputLen = None,
    num_requests: Annotated[
        int, typer.Option(help="Requests a run.", min=1, max=1 << 16, rich_help_panel=shared.WORK)
    ] = 64,
    stop_at_eos: shared.StopAtEos = False,
    seed: shared.Seed = 0,
    arms: shared.Arms = None,
    repeats: shared.Repeats = 3,
    server: shared.Server = None,
    baseline_server: shared.BaselineServer = None,
    served_model: shared.ServedModel = None,
    api_key: shared.ApiKey = None,
    output: shared.Output = None,
    json_lines: shared.Json = False,
    details: shared.Details = False,
    markdown: shared.Markdown = False,
    temperature: sampling.Temperature = 0.0,
    top_k: sampling.TopK = 0,
    top_p: sampling.TopP = 1.0,
    min_p: sampling.MinP = 0.0,
    presence_penalty: sampling.PresencePenalty = 0.0,
    frequency_penalty: sampling.FrequencyPenalty = 0.0,
    repetition_penalty: sampling.RepetitionPenalty = 1.0,
    drafter: opt.Drafter = None,
    num_speculative_tokens: opt.NumSpeculativeTokens = None,
    latency_weight: opt.LatencyWeight = None,
    mtp_modules: opt.MtpModules = None,
    draft_model: opt.DraftModel = None,
    draft_quantization: opt.DraftQuantization = None,
    max_num_seqs: Annotated[int, typer.Option(help="Most requests at a time.", min=1, rich_help_panel=opt.ENGINE)] = 80,
    max_num_batched_tokens: opt.MaxNumBatchedTokens = None,
    model: opt.Model = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    quantization: opt.Quantization = None,
    threads: opt.Threads = None,
) -> None:
    """Compare plain decoding with speculation under Poisson arrivals: latency, and goodput under its limits.

    Goodput counts the requests a second whose TTFT and TPOT both kept their limits. Exit 1 if a token differs."""
    given = locals()
    setup.check_places(given)
    rates = parse_rates(request_rate)
    work, names = setup.workload(given), setup.arm_names(given)
    from paceline.bench.workload import make_jobs

    subject = setup.subject(given)
    jobs = make_jobs(work, num_requests, subject.tokenizer, subject.context)
    longest = max(len(job.prompt) for job in jobs) + work.params.max_tokens
    sides = setup.make_arms(given, names, subject, max_num_seqs, longest)
    record = setup.new_record("rate", given, subject, sides, work)
    record.settings |= {"ttft_ms": ttft_ms, "tpot_ms": tpot_ms}
    for _ in setup.run_all(record, sides, levels(rates, jobs, seed, ttft_ms, tpot_ms), given):
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
