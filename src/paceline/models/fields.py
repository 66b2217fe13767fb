"""Fields of config.json that a family needs, and those it would read wrongly: refused in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.config import ModelConfig
from paceline.errors import UserError


def need_whole(config: ModelConfig, *names: str) -> None:
    """Raises `UserError` for the first that is missing or no whole number."""
    for name in names:
        value = config.raw.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"config.json: a {config.model_type} model needs {name} as a whole number, not {value!r}.")


def need_values(config: ModelConfig, values: Mapping[str, Any]) -> None:
    """Raises `UserError` for the first field that is there with another value. Null counts as not there."""
    for name, value in values.items():
        if config.raw.get(name) not in (None, value):
            raise UserError(
                f"config.json: {name} {config.raw[name]!r} is not supported for {config.model_type}; "
                f"it must be {value!r}."
            )


def norm_eps(config: ModelConfig) -> float:
    return float(config.raw.get("rms_norm_eps", 1e-6))
