"""Paceline: LLM inference built around multi-token-prediction speculative decoding,
with text that does not depend on it.

Example: `from paceline import LLM, SamplingParams`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.errors import UserError as UserError
    from paceline.llm import LLM as LLM
    from paceline.request import SamplingParams as SamplingParams
    from paceline.structured import StructuredOutputsParams as StructuredOutputsParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "llm",
    "SamplingParams": "request",
    "StructuredOutputsParams": "structured",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when asked for: `paceline --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
