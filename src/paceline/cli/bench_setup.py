"""From the options of `paceline bench`'s commands to requests, arms and a record; and the run itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.cli.bench_options import Result, Served, Work
from paceline.cli.options import Drafting, ModelChoice, Modules, flag, given, refuse_idle_options
from paceline.cli.sampling import Shape
from paceline.errors import UserError
from paceline.request import SamplingParams

if TYPE_CHECKING:
    from paceline.bench.record import Record
    from paceline.bench.rows import Level
    from paceline.bench.runs import Answer, Arm, Job, Tick
    from paceline.bench.subject import Subject
    from paceline.bench.workload import Workload

OUTPUT_LEN = 128
ROOM = 512  # tokens of context that an engine has at least, so that it can measure what its steps cost


def workload(work: Work, shape: Shape) -> Workload:
    """Answers end after a fixed number of tokens, unless the model may end them."""
    from paceline.bench.workload import Workload

    params = SamplingParams(**vars(shape), max_tokens=work.output_len or OUTPUT_LEN, ignore_eos=not work.stop_at_eos)
    return Workload(work.dataset, params, work.seed, work.input_len, work.source)


def check_places(*paths: Path | None) -> None:
    """Raises `UserError` for a file that could not be written in the end."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UserError(f"{path} cannot be written: give a file in a directory that exists.")


def check_result(result: Result) -> None:
    """Raises `UserError` for a result that could not be given."""
    check_places(result.output)
    if result.json_lines and result.markdown:
        raise UserError("--json and --markdown exclude each other; give one of them.")


def arm_names(arms: str | None, drafting: Drafting, modules: Modules) -> list[str]:
    """Those of --arms; without it plain decoding against what -k says, or against the engine's own choice."""
    from paceline.bench.arms import BASELINE, parse_arms

    k = drafting.num_speculative_tokens
    if arms is not None and k is not None:
        raise UserError("-k and --arms exclude each other; write the number among the arms.")
    if drafting.drafter == BASELINE:
        raise UserError("--drafter none is what the arm none stands for; name another drafter, or leave it out.")
    refuse_idle_options(drafting, modules)
    return parse_arms(f"{BASELINE},{k or 'auto'}" if arms is None else arms)


def subject(model: ModelChoice, served: Served | None = None, engine: Collection[str] = ()) -> Subject:
    """The model; its weights only where this process runs it. Raises `UserError` for options that a server would not
    look at: most of those of `engine`, whose names are given."""
    from paceline.bench.subject import Subject

    if served is None or served.server is None:
        return Subject.here(**vars(model))
    idle = [name for name in [*given(model), *engine] if name not in ("model", "drafter", "num_speculative_tokens")]
    if idle:
        raise UserError(f"{flag(idle[0])} is the server's own; give it there, or leave --server out.")
    return Subject.served(model.model)


def longest(jobs: Sequence[Job]) -> int:
    """Tokens of the longest request, prompt and answer."""
    return max(len(job.prompt) + job.params.max_tokens for job in jobs)


def make_arms(names: list[str], model: Subject, most: int, longest: int, engine: dict[str, Any]) -> list[Arm]:
    """Engines for `most` requests at a time of `longest` tokens. A prefix cache would make later repeats read nothing,
    so there is none."""
    from paceline.bench.arms import engine_arms
    from paceline.config import EngineConfig

    assert model.loaded is not None, "the weights are somebody else's"
    sizes = {
        "max_num_seqs": most,
        "max_num_batched_tokens": max(EngineConfig.max_num_batched_tokens, most),
        "max_model_len": min(model.context, max(longest, ROOM)),
        "enable_prefix_caching": False,
    }
    return [*engine_arms(model.loaded, names, sizes | engine)]


def arms_of(
    names: list[str], model: Subject, most: int, longest: int, engine: dict[str, Any], served: Served
) -> list[Arm]:
    """A server, or two, or engines, as `make_arms` has them."""
    if served.server is not None:
        return _server_arms(names, model, served.server, served, engine.get("drafter"))
    if served.baseline_server is not None:
        raise UserError("--baseline-server belongs to --server; add that.")
    return make_arms(names, model, most, longest, engine)


def _server_arms(names: list[str], model: Subject, server: str, served: Served, drafter: str | None) -> list[Arm]:
    """On one server the speculation field of each request tells the arms apart."""
    from paceline.bench.arms import speculation_field
    from paceline.bench.remote import ServerArm

    apart = served.baseline_server is not None
    if apart and len(names) != 2:
        raise UserError("Two servers are two arms: leave --arms out, or name two.")
    urls = [served.baseline_server or server, *[server] * (len(names) - 1)]
    return [
        ServerArm(
            name,
            url,
            model.tokenizer,
            None if apart else speculation_field(name, drafter),
            served.served_model,
            api_key=served.api_key,
        )
        for name, url in zip(names, urls, strict=True)
    ]


def new_record(
    kind: str, facts: dict[str, Any], arms: Sequence[Arm], work: Workload, result: Result, settings: dict[str, Any]
) -> Record:
    """With every option that changes a figure. facts: of the model."""
    from paceline.bench.record import Record

    asked = {name: getattr(work, name) for name in ("dataset", "source", "input_len", "seed")}
    sampled = {name: getattr(work.params, name) for name in vars(Shape())}
    lengths = {"output_len": work.params.max_tokens, "ignore_eos": work.params.ignore_eos}
    told = {"arms": [arm.name for arm in arms]} | lengths | asked | sampled | settings
    return Record(kind, shlex.join(["paceline", *sys.argv[1:]]), told, facts, result.output)


def run_all(
    record: Record,
    arms: Sequence[Arm],
    levels: Sequence[Level],
    repeats: int,
    result: Result,
    reference: str | None = None,
    exact: Sequence[str] | None = None,
    decode: Callable[[list[int]], str] | None = None,
) -> Iterator[dict[str, list[Answer]]]:
    """Measures, and shows what was measured, whatever ends it. reference: the arm whose answers are right, else the
    first. exact: the arms that must give them too, else all. decode: where some arms tell token ids, others text.
    Yields the answers of each level."""
    from paceline.bench.rows import measure
    from paceline.cli.bench_show import finishing

    tokens = repeats * len(arms) * sum(level.tokens for level in levels)
    with finishing(record, result, exact), progress_bar(tokens) as (tick, say):
        yield from measure(record, arms, levels, repeats, tick, say, reference, decode)


@contextmanager
def progress_bar(tokens: int) -> Iterator[tuple[Tick, Callable[[str], None]]]:
    """A bar of so many tokens on stderr; the second value sets its words."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=tokens)
        yield (
            lambda count: progress.update(task, advance=count),
            lambda words: progress.update(task, description=words),
        )
