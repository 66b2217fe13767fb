"""`paceline xllm-compat`: xLLM's launch command."""

from __future__ import annotations

import typer


def xllm_compat(flags: typer.Context) -> None:
    """Start the server with xLLM's launch flags. --help lists them, and what becomes of each."""
    from paceline.compat.xllm import run

    run(flags.args)
