"""`paceline bench compare`: the same prompts and model through transformers and any server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import bench_options as shared
from paceline.cli import bench_setup as setup
from paceline.cli import options as opt
from paceline.cli.groups import grouped
from paceline.cli.sampling import Shape
from paceline.errors import UserError

if TYPE_CHECKING:
    from paceline.bench.runs import Arm
    from paceline.bench.subject import Subject


@grouped
def bench_compare(
    *,
    work: shared.Work,
    num_requests: Annotated[
        int, typer.Option(help="Requests a run.", min=1, max=1 << 16, rich_help_panel=shared.WORK)
    ] = 16,
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
    result: shared.Result,
    drafting: opt.Drafting,
    modules: opt.Modules,
    model: opt.ModelChoice,
) -> None:
    """Compare with transformers and other servers: one request at a time, greedy, all of them in turn.

    The first column of ratios is to transformers' plain decoding. Exit 1 if our own answers differ among themselves;
    those of others may: their arithmetic is another."""
    setup.check_result(result)
    names, asked = setup.arm_names(arms, drafting, modules), setup.workload(work, Shape())
    others = [named_url(pair) for pair in server or []]
    from paceline.bench.rows import Level
    from paceline.bench.runs import Closed
    from paceline.bench.workload import make_jobs

    subject, options = setup.subject(model), opt.engine_options(drafting, modules)
    jobs = make_jobs(asked, num_requests, subject.tokenizer, subject.context)
    sides = [
        *([] if no_transformers else _transformers(subject, prompt_lookup_num_tokens)),
        *setup.make_arms(names, subject, 1, setup.longest(jobs), options),
        *(_server(name, url, subject, served_model, api_key) for name, url in others),
    ]
    settings = {"num_requests": num_requests, "repeats": repeats, "engine": options}
    record = setup.new_record("compare", subject.facts(model.quantization), sides, asked, result, settings)
    level = Level({"concurrency": 1, "requests": num_requests}, jobs, Closed(1))
    decode = subject.tokenizer.decode
    for _ in setup.run_all(record, sides, [level], repeats, result, names[0], exact=names, decode=decode):
        pass


def named_url(pair: str) -> tuple[str, str]:
    """Example: named_url("vllm=http://host:8000") = ("vllm", "http://host:8000"). Raises `UserError`."""
    name, _, url = pair.partition("=")
    if not name or not url:
        raise UserError(f"--server takes NAME=URL, as in vllm=http://127.0.0.1:8000, not {pair!r}.")
    return name, url


def _transformers(subject: Subject, lookup: int) -> list[Arm]:
    from paceline.bench.others import TransformersArm, load_transformers

    model = load_transformers(subject.path, subject.dtype)
    arms: list[Arm] = [TransformersArm("transformers", model)]
    return [*arms, TransformersArm("transformers lookup", model, lookup)] if lookup else arms


def _server(name: str, url: str, subject: Subject, model: str | None, api_key: str | None) -> Arm:
    from paceline.bench.remote import ServerArm

    return ServerArm(name, url, subject.tokenizer, None, model, api_key=api_key)
