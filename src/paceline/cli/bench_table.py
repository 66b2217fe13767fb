"""`paceline bench table`: plain decoding against speculation, from one request at a time to 80."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli import bench_options as shared
from paceline.cli import bench_setup as setup
from paceline.cli import options as opt
from paceline.cli import sampling
from paceline.errors import UserError

if TYPE_CHECKING:
    from paceline.bench.rows import Level
    from paceline.bench.subject import Subject
    from paceline.bench.workload import Workload

LEAST_REQUESTS, WAVES = 32, 3
MAX_CONCURRENCY = 4096


def bench_table(
    concurrency: Annotated[
        str, typer.Option(help="Requests in flight, a row of the table each.", rich_help_panel=shared.LOAD)
    ] = "1,2,4,8,16,20,40,80",
    dataset: shared.Dataset = "heldout",
    source: shared.Source = None,
    by_source: Annotated[
        bool, typer.Option("--by-source", help="A table for each source.", rich_help_panel=shared.WORK)
    ] = False,
    input_len: shared.InputLen = None,
    output_len: shared.OutputLen = None,
    num_requests: shared.NumRequests = None,
    full: shared.Full = False,
    stop_at_eos: shared.StopAtEos = False,
    seed: shared.Seed = 0,
    arms: shared.Arms = None,
    repeats: shared.Repeats = 5,
    server: shared.Server = None,
    baseline_server: shared.BaselineServer = None,
    served_model: shared.ServedModel = None,
    api_key: shared.ApiKey = None,
    output: shared.Output = None,
    json_lines: shared.Json = False,
    details: shared.Details = False,
    markdown: shared.Markdown = False,
    spec_bench: shared.SpecBench = None,
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
    max_num_batched_tokens: opt.MaxNumBatchedTokens = None,
    model: opt.Model = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    quantization: opt.Quantization = None,
    threads: opt.Threads = None,
) -> None:
    """Compare plain decoding with speculation at each concurrency, in turn; exit 1 if a token differs.

    Requests are always in flight up to the concurrency. Answers have a fixed length. What was measured is kept when
    something ends the run early."""
    given = locals()
    from paceline.bench.spec_bench import write_answers

    setup.check_places(given)
    work, names = setup.workload(given), setup.arm_names(given)
    counts = {level: requests_at(level, given["num_requests"]) for level in parse_concurrency(concurrency)}
    most = max(counts)
    if counts[most] < most:
        raise UserError(
            f"{counts[most]} requests cannot be {most} in flight: raise --num-requests or lower --concurrency."
        )
    subject = setup.subject(given)
    levels = [
        level
        for name in (_sources(given) if by_source else [source])
        for level in _levels(replace(work, source=name), counts, subject, by_source)
    ]
    longest = max(len(job.prompt) for level in levels for job in level.jobs) + work.params.max_tokens
    sides = setup.make_arms(given, names, subject, most, longest)
    record = setup.new_record("table", given, subject, sides, work)
    for index, found in enumerate(setup.run_all(record, sides, levels, given)):
        if spec_bench is not None and not index:
            write_answers(spec_bench, levels[0].jobs, found, record.model["name"], subject.tokenizer)


def parse_concurrency(text: str) -> list[int]:
    """`1,2,4` to [1, 2, 4]; raises `UserError` for what is no list of counts."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 9 and 1 <= int(part) <= MAX_CONCURRENCY for part in parts):
        raise UserError(f"--concurrency takes counts from 1 to {MAX_CONCURRENCY}, as in 1,2,4, not {text[:60]!r}.")
    return list(dict.fromkeys(int(part) for part in parts))


def requests_at(concurrency: int, num_requests: int | None) -> int:
    """Enough for a steady state that is much longer than an answer."""
    return max(LEAST_REQUESTS, WAVES * concurrency) if num_requests is None else num_requests


def _sources(given: dict[str, Any]) -> list[str | None]:
    from paceline.bench.datasets import MAX_PROMPTS, RANDOM, read_dataset

    if given["source"] is not None or given["dataset"] == RANDOM:
        raise UserError("--by-source measures every source of a dataset: leave --source out, and random prompts.")
    return [*dict.fromkeys(prompt.source for prompt in read_dataset(given["dataset"], MAX_PROMPTS))]


def _levels(work: Workload, counts: dict[int, int], subject: Subject, by_source: bool) -> list[Level]:
    """A row for each concurrency; the requests of one are among those of a larger one."""
    from paceline.bench.rows import Level
    from paceline.bench.runs import Closed
    from paceline.bench.workload import make_jobs

    context = subject.context
    jobs = make_jobs(work, max(counts.values()), subject.tokenizer, context)
    source = {"source": work.source} if by_source else {}
    return [
        Level({**source, "concurrency": level, "requests": count}, jobs[:count], Closed(level))
        for level, count in counts.items()
    ]
