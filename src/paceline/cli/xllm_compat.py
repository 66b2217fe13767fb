"""`paceline xllm-compat`: xLLM's launch command."""

from __future__ import annotations

import typer


def xllm_compat(flags: typer.Context) -> None:
    """Take xLLM's launch flags, load model and draft, answer prompts. --help lists the flags."""
    from paceline.compat.xllm import run

    run(flags.args)
