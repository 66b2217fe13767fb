"""`paceline`: the table of commands, and the one place where errors become exit codes.

0: good. 1: a difference or a failure was found. 2: bad input. 130: interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from paceline import __version__
from paceline.cli.bench_group import bench_group
from paceline.cli.demo import demo
from paceline.cli.export_mtp import export_mtp
from paceline.cli.generate import generate
from paceline.cli.inspect import inspect
from paceline.cli.plot_training import plot_training
from paceline.cli.quantize import quantize
from paceline.cli.serve import serve
from paceline.cli.top import top
from paceline.cli.train import train
from paceline.cli.verify_lossless import verify_lossless
from paceline.cli.xllm_compat import xllm_compat
from paceline.errors import as_exit_code

app = typer.Typer(
    name="paceline",
    help="LLM inference with multi-token-prediction speculative decoding: faster, with exactly the same tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (generate, demo, serve, top, verify_lossless, train, plot_training, inspect, export_mtp, quantize):
    app.command()(command)
app.add_typer(bench_group)
# Its flags are another system's: none is ours to read, not even --help.
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})(
    xllm_compat
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"paceline {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """A user's mistake is one sentence on stderr and exit 2; an interrupt is exit 130."""
    with as_exit_code():
        app()
