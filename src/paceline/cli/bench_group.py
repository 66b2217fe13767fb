"""`paceline bench` and its subcommands: without one, acceptance and speed on the held-out prompts."""

from __future__ import annotations

import typer

from paceline.cli.bench import bench
from paceline.cli.bench_compare import bench_compare
from paceline.cli.bench_plot import bench_plot
from paceline.cli.bench_policy import bench_policy
from paceline.cli.bench_rate import bench_rate
from paceline.cli.bench_spec_bench import bench_spec_bench
from paceline.cli.bench_table import bench_table

bench_group = typer.Typer(name="bench", context_settings={"help_option_names": ["-h", "--help"]})
bench_group.callback(invoke_without_command=True)(bench)
bench_group.command("table")(bench_table)
bench_group.command("compare")(bench_compare)
bench_group.command("rate")(bench_rate)
bench_group.command("plot")(bench_plot)
bench_group.command("spec-bench")(bench_spec_bench)
bench_group.command("policy")(bench_policy)
