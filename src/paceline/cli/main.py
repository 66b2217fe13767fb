"""`paceline`: the table of commands, and the one place where errors become exit codes.

0: good. 1: a difference or a failure was found. 2: bad input. 130: interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer

from paceline import __version__
from paceline.errors import as_exit_code

# Command to the file below `cli` that has it, under the file's own name.
COMMANDS: Mapping[str, str] = {
    "generate": "generate",
    "demo": "demo",
    "serve": "serve",
    "top": "top",
    "verify-lossless": "verify_lossless",
    "train": "train",
    "plot-training": "plot_training",
    "inspect": "inspect",
    "export-mtp": "export_mtp",
    "quantize": "quantize",
    "bench": "bench_group",
    "xllm-compat": "xllm_compat",
}
# Another system's flags: none is ours to read, not even --help.
SETTINGS: Mapping[str, Any] = {
    "xllm-compat": {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
}


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """With these commands only: each brings imports and a table of flags, and a command line needs one of them."""
    app = typer.Typer(
        name="paceline",
        help="LLM inference with multi-token-prediction speculative decoding: faster, with exactly the same tokens.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=root,
    )
    for name in names:
        command = getattr(import_module(f"paceline.cli.{COMMANDS[name]}"), COMMANDS[name])
        if isinstance(command, typer.Typer):
            app.add_typer(command)
        else:
            app.command(name, context_settings=SETTINGS.get(name))(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"paceline {__version__}")
        raise typer.Exit()


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def asked(words: list[str]) -> Iterable[str]:
    """The commands that a line may mean: the one it begins with, none if it only asks for the version, else all."""
    first = words[0] if words else ""
    return [first] if first in COMMANDS else [] if first == "--version" else COMMANDS


def main() -> None:
    """A user's mistake is one sentence on stderr and exit 2; an interrupt is exit 130."""
    with as_exit_code():
        make_app(asked(sys.argv[1:]))()
