"""From the options of `paceline bench`'s commands to requests, arms and a record; and the run itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from paceline.cli import options as opt
from paceline.cli.sampling import sampling_params
from paceline.errors import UserError

if TYPE_CHECKING:
    from paceline.bench.record import Record
    from paceline.bench.rows import Level
    from paceline.bench.runs import Answer, Arm, Tick
    from paceline.bench.subject import Subject
    from paceline.bench.workload import Workload

FULL = {"input_len": 2500, "output_len": 1500, "num_requests": 80}
OUTPUT_LEN = 128
_ENGINES_OWN = (
    *("dtype", "device", "quantization", "threads", "mtp_modules", "draft_model", "draft_quantization"),
    *("max_num_batched_tokens", "latency_weight"),
)
ROOM = 512  # tokens of context that an engine has at least, so that it can measure what its steps cost


def workload(given: dict[str, Any]) -> Workload:
    """Of a command's arguments what is asked of every arm. --full stands for lengths that are not given."""
    from paceline.bench.workload import Workload

    if given.get("full"):
        for name, value in FULL.items():
            given[name] = value if given[name] is None else given[name]
    rest = {"stop": None, "stop_token_ids": None, "logit_bias": None, "ignore_eos": not given["stop_at_eos"]}
    params = sampling_params({**given, **rest, "max_tokens": given["output_len"] or OUTPUT_LEN})
    return Workload(given["dataset"], params, given["seed"], given["input_len"], given.get("source"))


def check_places(given: dict[str, Any]) -> None:
    """Raises `UserError` for a file that could not be written in the end."""
    for name in ("output", "spec_bench"):
        path = given.get(name)
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UserError(f"{path} cannot be written: give a file in a directory that exists.")
    if given["json_lines"] and given["markdown"]:
        raise UserError("--json and --markdown exclude each other; give one of them.")


def arm_names(given: dict[str, Any]) -> list[str]:
    """Those of --arms; without it plain decoding against what -k says, or against the engine's own choice."""
    from paceline.bench.arms import BASELINE, parse_arms

    k = given["num_speculative_tokens"]
    if given["arms"] is not None and k is not None:
        raise UserError("-k and --arms exclude each other; write the number among the arms.")
    if given["drafter"] == BASELINE:
        raise UserError("--drafter none is what the arm none stands for; name another drafter, or leave it out.")
    opt.refuse_idle_options(given)
    return parse_arms(f"{BASELINE},{k or 'auto'}" if given["arms"] is None else given["arms"])


def subject(given: dict[str, Any]) -> Subject:
    """The model; its weights only where this process runs it. Raises `UserError` for options that a server would not
    look at."""
    from paceline.bench.subject import Subject

    if not isinstance(given.get("server"), str):
        return Subject.here(*(given[name] for name in ("model", "dtype", "device", "quantization", "threads")))
    idle = [name for name in _ENGINES_OWN if given.get(name) is not None]
    if idle:
        raise UserError(f"--{idle[0].replace('_', '-')} is the server's own; give it there, or leave --server out.")
    return Subject.served(given["model"])


def make_arms(given: dict[str, Any], names: list[str], model: Subject, most: int, longest: int) -> list[Arm]:
    """Engines for `most` requests at a time of `longest` tokens, or a server. A prefix cache would make later repeats
    read nothing, so there is none."""
    from paceline.bench.arms import engine_arms
    from paceline.config import EngineConfig

    if model.loaded is None:
        return _server_arms(given, names, model)
    if given.get("baseline_server") is not None:
        raise UserError("--baseline-server belongs to --server; add that.")
    sizes = {
        "max_num_seqs": most,
        "max_num_batched_tokens": max(EngineConfig.max_num_batched_tokens, most),
        "max_model_len": min(model.context, max(longest, ROOM)),
        "enable_prefix_caching": False,
    }
    return [*engine_arms(model.loaded, names, sizes | opt.engine_options(given))]


def _server_arms(given: dict[str, Any], names: list[str], model: Subject) -> list[Arm]:
    from paceline.bench.arms import speculation_field
    from paceline.bench.remote import ServerArm

    apart = given["baseline_server"] is not None
    if apart and len(names) != 2:
        raise UserError("Two servers are two arms: leave --arms out, or name two.")
    return [
        ServerArm(
            name,
            given["baseline_server"] if apart and not index else given["server"],
            model.tokenizer,
            None if apart else speculation_field(name, given["drafter"]),
            given["served_model"],
            api_key=given["api_key"],
        )
        for index, name in enumerate(names)
    ]


def new_record(kind: str, given: dict[str, Any], model: Subject, arms: Sequence[Arm], work: Workload) -> Record:
    """With every option that changes a figure."""
    from paceline.bench.record import Record

    kept = ("dataset", "source", "input_len", "num_requests", "seed", "repeats", "server", "baseline_server")
    sampled = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    settings = {
        "arms": [arm.name for arm in arms],
        "output_len": work.params.max_tokens,
        "ignore_eos": work.params.ignore_eos,
        **{name: given[name] for name in (*kept, *sampled) if name in given},
        "engine": opt.engine_options(given),
    }
    return Record(
        kind, shlex.join(["paceline", *sys.argv[1:]]), settings, model.facts(given["quantization"]), given["output"]
    )


def run_all(
    record: Record,
    arms: Sequence[Arm],
    levels: Sequence[Level],
    given: dict[str, Any],
    reference: str | None = None,
    exact: Sequence[str] | None = None,
) -> Iterator[dict[str, list[Answer]]]:
    """Measures, and shows what was measured, whatever ends it. reference: the arm whose answers are right, else the
    first. exact: the arms that must give them too, else all. Yields the answers of each level."""
    from paceline.bench.rows import measure
    from paceline.cli.bench_show import finishing

    repeats = given["repeats"]
    tokens = repeats * len(arms) * sum(level.tokens for level in levels)
    with finishing(record, given, exact), progress_bar(tokens) as (tick, say):
        yield from measure(record, arms, levels, repeats, tick, say, reference)


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
