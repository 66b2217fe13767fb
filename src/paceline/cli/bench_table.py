"""`paceline bench table`: plain decoding against speculation, from one request at a time to 80."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import bench_options as shared
from paceline.cli import bench_setup as setup
from paceline.cli import options as opt
from paceline.cli import sampling
from paceline.cli.groups import grouped
from paceline.errors import UserError

if TYPE_CHECKING:
    from paceline.bench.rows import Level
    from paceline.bench.subject import Subject
    from paceline.bench.workload import Workload

LEAST_REQUESTS, WAVES = 32, 3
FULL_INPUT, FULL_OUTPUT, FULL_REQUESTS = 2500, 1500, 80  # the published workload
SCALE = 4  # the default's lengths are that part of them: as many as small models hold, and ten minutes' work
MAX_CONCURRENCY = 4096


@grouped
def bench_table(
    *,
    concurrency: Annotated[
        str, typer.Option(help="Requests in flight, a row of the table each.", rich_help_panel=shared.LOAD)
    ] = "1,2,4,8,16,20,40,80",
    work: shared.Work,
    by_source: Annotated[
        bool,
        typer.Option("--by-source", help="A line for each source, the worst one first.", rich_help_panel=shared.WORK),
    ] = False,
    num_requests: shared.NumRequests = None,
    full: shared.Full = False,
    short: shared.Short = False,
    arms: shared.Arms = None,
    repeats: shared.Repeats = 4,
    served: shared.Served,
    result: shared.Result,
    spec_bench: shared.SpecBench = None,
    shape: sampling.Shape,
    drafting: opt.Drafting,
    modules: opt.Modules,
    max_num_batched_tokens: opt.MaxNumBatchedTokens = None,
    model: opt.ModelChoice,
) -> None:
    """Compare plain decoding with speculation at each concurrency, in turn; exit 1 if a token differs.

    Requests are always in flight up to the concurrency. Answers have a fixed length. What was measured is kept when
    something ends the run early."""
    from paceline.bench.spec_bench import write_answers

    setup.check_result(result)
    setup.check_places(spec_bench)
    work, num_requests = sized(work, num_requests, full, short)
    asked, names = setup.workload(work, shape), setup.arm_names(arms, drafting, modules)
    counts = {level: requests_at(level, num_requests) for level in parse_concurrency(concurrency)}
    sources = _sources(work) if by_source else [work.source]
    options = opt.engine_options(drafting, modules, opt.Sizes(max_num_batched_tokens=max_num_batched_tokens))
    subject = setup.subject(model, served, options)
    levels = [one for name in sources for one in _levels(replace(asked, source=name), counts, subject, by_source)]
    longest = max(setup.longest(level.jobs) for level in levels)
    sides = setup.arms_of(names, subject, max(counts), longest, options, served)
    settings = {"num_requests": num_requests, "repeats": repeats, **shared.addresses(served), "engine": options}
    record = setup.new_record("table", subject.facts(model.quantization), sides, asked, result, settings)
    for index, found in enumerate(setup.run_all(record, sides, levels, repeats, result)):
        if spec_bench is not None and not index:
            write_answers(spec_bench, levels[0].jobs, found, subject.name, subject.tokenizer)


def sized(work: shared.Work, num_requests: int | None, full: bool, short: bool) -> tuple[shared.Work, int | None]:
    """The workload whose lengths are those of the published one, or a part of them, for what is not given; short ones
    are the dataset's. Raises `UserError` for two workloads at a time."""
    if full and short:
        raise UserError("--full and --short exclude each other: leave one out.")
    if short:
        return work, num_requests
    scale = 1 if full else SCALE
    lengths = work.input_len or FULL_INPUT // scale, work.output_len or FULL_OUTPUT // scale
    work = replace(work, input_len=lengths[0], output_len=lengths[1])
    return work, (num_requests or FULL_REQUESTS) if full else num_requests


def parse_concurrency(text: str) -> list[int]:
    """`1,2,4` to [1, 2, 4]; raises `UserError` for what is no list of counts."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 9 and 1 <= int(part) <= MAX_CONCURRENCY for part in parts):
        raise UserError(f"--concurrency takes counts from 1 to {MAX_CONCURRENCY}, as in 1,2,4, not {text[:60]!r}.")
    return list(dict.fromkeys(int(part) for part in parts))


def requests_at(concurrency: int, num_requests: int | None) -> int:
    """As many as are asked for, or enough for a steady state that is much longer than an answer. Raises `UserError` for
    fewer than shall be in flight."""
    count = max(LEAST_REQUESTS, WAVES * concurrency) if num_requests is None else num_requests
    if count < concurrency:
        raise UserError(
            f"{count} requests cannot be {concurrency} in flight: raise --num-requests or lower --concurrency."
        )
    return count


def _sources(work: shared.Work) -> list[str | None]:
    from paceline.bench.datasets import MAX_PROMPTS, RANDOM, read_dataset

    if work.source is not None or work.dataset == RANDOM:
        raise UserError("--by-source measures every source of a dataset: leave --source out, and random prompts.")
    return [*dict.fromkeys(prompt.source for prompt in read_dataset(work.dataset, MAX_PROMPTS))]


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
