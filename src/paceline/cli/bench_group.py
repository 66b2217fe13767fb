"""`paceline bench`: without a subcommand acceptance and speed on the held-out prompts, with one a larger measurement."""

from __future__ import annotations

import typer

from paceline.cli.bench import bench

bench_group = typer.Typer(name="bench", context_settings={"help_option_names": ["-h", "--help"]})
bench_group.callback(invoke_without_command=True)(bench)
