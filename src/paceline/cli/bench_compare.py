"""`paceline bench compare`: the same prompts and model through transformers and any server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli import bench_options as shared
from paceline.cli import bench_setup as setup
from paceline.cli import options as opt
from paceline.errors import UserError

if TYPE_CHECKING:
    from paceline.bench.runs import Arm
    from paceline.bench.subject import Subject

LOOKUP = "transformers lookup"


def bench_compare(
    dataset: shared.Dataset = "heldout",
    source: shared.Source = None,
    input_len: shared.InputLen = None,
    output_len: shared.OutputLen = None,
    num_requests: Annotated[
        int, typer.Option(help="Requests a run.", min=1, max=1 << 16, rich_help_panel=shared.WORK)
    ] = 16,
    stop_at_eos: shared.StopAtEos = False,
    seed: shared.Seed = 0,
    arms: shared.Arms = None,
    no_transformers: Annotated[
        bool, typer.Option("--no-transformers", help="Leave transformers out.", rich_help_panel=shared.LOAD)
    ] = False,
    prompt_lookup_num_tokens: Annotated[
        int, typer.Option(help="Of transformers' prompt lookup; 0: leave it out.", min=0, rich_help_panel=shared.LOAD)
    ] = 10,
    server: Annotated[
        list[str] | None,
        typer.Option(help="Also this server. Repeatable.", metavar="NAME=URL", rich_help_panel=shared.LOAD),
    ] = None,
    served_model: shared.ServedModel = None,
    api_key: shared.ApiKey = None,
    repeats: shared.Repeats = 5,
    output: shared.Output = None,
    json_lines: shared.Json = False,
    details: shared.Details = False,
    markdown: shared.Markdown = False,
    drafter: opt.Drafter = None,
    num_speculative_tokens: opt.NumSpeculativeTokens = None,
    latency_weight: opt.LatencyWeight = None,
    mtp_modules: opt.MtpModules = None,
    draft_model: opt.DraftModel = None,
    draft_quantization: opt.DraftQuantization = None,
    model: opt.Model = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    quantization: opt.Quantization = None,
    threads: opt.Threads = None,
) -> None:
    """Compare with transformers and other servers: one request at a time, greedy, all of them in turn.

    The first column of ratios is to transformers' plain decoding. Exit 1 if our own answers differ among themselves;
    those of others may: their arithmetic is another."""
    given = locals()
    setup.check_places(given)
    work, names = setup.workload(given | {"temperature": 0.0}), setup.arm_names(given)
    from paceline.bench.rows import Level
    from paceline.bench.runs import Closed
    from paceline.bench.workload import make_jobs

    subject = setup.subject(given)
    jobs = make_jobs(work, num_requests, subject.tokenizer, subject.context)
    longest = max(len(job.prompt) for job in jobs) + work.params.max_tokens
    engines = setup.make_arms(given | {"server": None, "baseline_server": None}, names, subject, 1, longest)
    sides = [*_transformers(given, subject), *engines, *_servers(given, subject)]
    record = setup.new_record("compare", given, subject, sides, work)
    level = Level({"concurrency": 1, "requests": num_requests}, jobs, Closed(1))
    for _ in setup.run_all(record, sides, [level], given, reference=names[0], exact=names):
        pass


def _transformers(given: dict[str, Any], subject: Subject) -> list[Arm]:
    if given["no_transformers"]:
        return []
    from paceline.bench.others import TransformersArm, load_transformers

    model, lookup = load_transformers(subject.path, subject.dtype), given["prompt_lookup_num_tokens"]
    arms: list[Arm] = [TransformersArm("transformers", model)]
    return [*arms, TransformersArm(LOOKUP, model, lookup)] if lookup else arms


def _servers(given: dict[str, Any], subject: Subject) -> list[Arm]:
    from paceline.bench.remote import ServerArm

    arms: list[Arm] = []
    for pair in given["server"] or []:
        name, _, url = pair.partition("=")
        if not name or not url:
            raise UserError(f"--server takes NAME=URL, as in vllm=http://127.0.0.1:8000, not {pair!r}.")
        arms.append(ServerArm(name, url, subject.tokenizer, None, given["served_model"], api_key=given["api_key"]))
    return arms
