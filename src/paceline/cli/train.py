"""`paceline train`: a model with its MTP modules, from JSONL text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli import options as opt
from paceline.errors import UserError
from paceline.train.settings import OptimConfig, TrainConfig

DATA, LENGTH, LEARNING = "Data", "Length and batches", "Learning"


def _option(help: str, panel: str, of: type, name: str, *flags: str) -> Any:
    """An option whose default lives in the field `name` of a configuration class."""
    default = getattr(of, name, None)
    shown = False if default is None else str(default).lower() if isinstance(default, bool) else f"{default}"
    return typer.Option(*flags, help=help, rich_help_panel=panel, show_default=shown)


def _run(help: str, name: str, panel: str = LENGTH) -> Any:
    return _option(help, panel, TrainConfig, name)


def _learning(help: str, name: str) -> Any:
    return _option(help, LEARNING, OptimConfig if hasattr(OptimConfig, name) else TrainConfig, name)


def train(
    config: Annotated[
        Path, typer.Option(help="The model's shape: config.json or its directory.", rich_help_panel=DATA)
    ],
    data: Annotated[
        list[Path], typer.Option(help="JSONL file, or directory of them. Repeatable.", rich_help_panel=DATA)
    ],
    out: Annotated[Path, typer.Option(help="Directory of the run.", rich_help_panel=DATA)],
    eval_data: Annotated[
        list[Path] | None, typer.Option(help="Held-out JSONL. Repeatable.", rich_help_panel=DATA)
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Directory of a tokenizer.", rich_help_panel=DATA)] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Train a tokenizer of that size on the data.", rich_help_panel=DATA)
    ] = None,
    repeat: Annotated[
        list[str] | None, typer.Option(help="How often a file counts, as NAME=TIMES. Repeatable.", rich_help_panel=DATA)
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(help="Begin with the weights of this checkpoint instead of random ones.", rich_help_panel=DATA),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out; rates, schedule and --loss-on may change.",
            rich_help_panel=DATA,
        ),
    ] = False,
    steps: Annotated[int | None, _run("Stop after that many updates.", "steps")] = None,
    epochs: Annotated[float | None, _run("Stop after that many passes over the data.", "epochs")] = None,
    max_minutes: Annotated[
        float | None, _run("Stop after that time; the schedule follows the clock.", "max_minutes")
    ] = None,
    batch_tokens: Annotated[int | None, _run("Tokens an update.", "batch_tokens")] = None,
    micro_tokens: Annotated[int | None, _run("Tokens a forward pass, to save memory.", "micro_tokens")] = None,
    seq_len: Annotated[int | None, _run("Tokens a row that documents are packed into.", "seq_len")] = None,
    log_every: Annotated[int | None, _run("Steps between two lines.", "log_every")] = None,
    eval_every: Annotated[int | None, _run("Steps between two evaluations and exports.", "eval_every")] = None,
    eval_tokens: Annotated[
        int | None, _run("Held-out tokens of an evaluation; the last takes all.", "eval_tokens")
    ] = None,
    save_every: Annotated[int | None, _run("Steps between two checkpoints.", "save_every")] = None,
    optimizer: Annotated[str | None, _learning("muon or adamw.", "optimizer")] = None,
    lr: Annotated[float | None, _learning("Largest learning rate.", "lr")] = None,
    adam_lr_ratio: Annotated[
        float | None, _learning("AdamW's rate over Muon's, when both run.", "adam_lr_ratio")
    ] = None,
    schedule: Annotated[str | None, _learning("wsd, cosine or constant.", "schedule")] = None,
    warmup_steps: Annotated[int | None, _learning("Steps until the largest rate.", "warmup_steps")] = None,
    decay: Annotated[float | None, _learning("Share of the run that wsd decays over.", "decay")] = None,
    final_lr_ratio: Annotated[float | None, _learning("Last rate over the largest.", "final_lr_ratio")] = None,
    weight_decay: Annotated[float | None, _learning("Decoupled weight decay.", "weight_decay")] = None,
    clip: Annotated[float | None, _learning("Largest norm of the gradient; 0: any.", "clip")] = None,
    ema: Annotated[float | None, _learning("Average the weights with that memory; 0: do not.", "ema")] = None,
    mtp_loss_weight: Annotated[float | None, _learning("Weight of the depths' mean loss.", "mtp_loss_weight")] = None,
    detach_mtp: Annotated[bool, _learning("The MTP modules do not teach the target.", "detach_mtp")] = False,
    freeze_target: Annotated[
        bool,
        _learning("Only the MTP modules learn, from what the target says (best on its own text).", "freeze_target"),
    ] = False,
    draft_window: Annotated[
        int | None, _learning("Tokens that a token of an MTP module sees at most; 0: all.", "draft_window")
    ] = None,
    loss_on: Annotated[str | None, _learning("all, or only the assistant's answers.", "loss_on")] = None,
    balance_rate: Annotated[float | None, _learning("Speed of the experts' load balancing.", "balance_rate")] = None,
    seed: Annotated[int | None, _learning("Of weights and order of the data.", "seed")] = None,
    dtype: Annotated[str | None, _learning("bfloat16 or float32; master weights are float32.", "dtype")] = None,
    save_dtype: Annotated[str | None, _learning("That of the checkpoint, if another one.", "save_dtype")] = None,
    device: opt.Device = None,
    threads: opt.Threads = None,
) -> None:
    """Pretrain a model together with its MTP modules; RUN/model is a checkpoint that every other command reads.

    SIGINT and SIGTERM save the run and end it; --resume goes on exactly where it stood."""
    given = {name: value for name, value in locals().items() if value is not None}
    settings, repeats = train_config(given), read_repeats(given.pop("repeat", []))

    import torch

    from paceline.runtime.device import choose_device
    from paceline.train.prepare import Inputs, prepare
    from paceline.train.run import train as train_to_the_end

    if threads is not None:
        torch.set_num_threads(threads)
    inputs = Inputs(**chosen(given, Inputs), repeat=repeats)
    trainer, run = prepare(inputs, settings, choose_device(device))
    if not train_to_the_end(trainer, run, resume):
        raise typer.Exit(130)


def train_config(given: dict[str, Any]) -> TrainConfig:
    """Of a command's arguments those that a run is configured by."""
    return TrainConfig(**chosen(given, TrainConfig), optim=OptimConfig(**chosen(given, OptimConfig)))


def chosen(given: dict[str, Any], of: type) -> dict[str, Any]:
    """Those arguments that are fields of the configuration class `of`."""
    return {name: given[name] for name in given.keys() & {field.name for field in dataclasses.fields(of)}}


def read_repeats(entries: list[str]) -> dict[str, float]:
    """["a=10"] to {"a": 10.0}."""
    repeats: dict[str, float] = {}
    for entry in entries:
        name, _, times = entry.rpartition("=")
        try:
            repeats[name] = float(times)
        except ValueError:
            repeats[name] = -1.0
        if not name or not 0 <= repeats[name] <= 1000:
            raise UserError(f"--repeat {entry!r} must be NAME=TIMES with TIMES from 0 to 1000, as in stories=2.")
    return repeats
