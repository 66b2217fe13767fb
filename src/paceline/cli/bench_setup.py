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
    from paceline.bench.workload import Workload
    from paceline.loaded import Loaded

FULL = {"input_len": 2500, "output_len": 1500, "num_requests": 80}
OUTPUT_LEN = 128
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
    return parse_arms(f"{BASELINE},{k or 'auto'}" if given["arms"] is None else given["arms"])


def load_model(given: dict[str, Any]) -> Loaded:
    """The weights that all arms share."""
    import torch

    from paceline.checkpoint.resolve import resolve_model
    from paceline.loaded import Loaded

    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    options = {name: given[name] for name in ("dtype", "device", "quantization")}
    return Loaded.from_dir(resolve_model(given["model"]), **options)


def make_arms(given: dict[str, Any], names: list[str], loaded: Loaded, most: int, longest: int) -> list[Arm]:
    """Engines for `most` requests at a time of `longest` tokens, or a server. A prefix cache would make later repeats
    read nothing, so there is none."""
    from paceline.bench.arms import engine_arms

    if given["server"] is None:
        if given["baseline_server"] is not None:
            raise UserError("--baseline-server belongs to --server; add that.")
        room = min(loaded.target.config.max_position_embeddings, max(longest, ROOM))
        sizes = {"max_num_seqs": most, "max_model_len": room, "enable_prefix_caching": False}
        sizes["max_num_batched_tokens"] = max(512, most)
        return [*engine_arms(loaded, names, sizes | opt.engine_options(given))]
    return _server_arms(given, names, loaded)


def _server_arms(given: dict[str, Any], names: list[str], loaded: Loaded) -> list[Arm]:
    from paceline.bench.arms import speculation_field
    from paceline.bench.remote import ServerArm

    apart = given["baseline_server"] is not None
    if apart and len(names) != 2:
        raise UserError("Two servers are two arms: leave --arms out, or name two.")
    return [
        ServerArm(
            name,
            given["baseline_server"] if apart and not index else given["server"],
            loaded.tokenizer,
            None if apart else speculation_field(name, given["drafter"]),
            given["served_model"],
            api_key=given["api_key"],
        )
        for index, name in enumerate(names)
    ]


def new_record(kind: str, given: dict[str, Any], loaded: Loaded, arms: Sequence[Arm], work: Workload) -> Record:
    """With every option that changes a figure."""
    from paceline.bench.record import Record, model_facts

    kept = ("dataset", "source", "input_len", "num_requests", "seed", "repeats", "server", "baseline_server")
    sampled = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    settings = {
        "arms": [arm.name for arm in arms],
        "output_len": work.params.max_tokens,
        "ignore_eos": work.params.ignore_eos,
        **{name: given[name] for name in (*kept, *sampled) if name in given},
        "engine": opt.engine_options(given),
    }
    dtype = str(loaded.target.norm.weight.dtype).removeprefix("torch.")
    facts = model_facts(loaded.path, given["model"], dtype, given["quantization"])
    return Record(kind, shlex.join(["paceline", *sys.argv[1:]]), settings, facts, given["output"])


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
