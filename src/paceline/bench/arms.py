"""The names of arms, and what they stand for: `none`, `auto`, `4`, `ngram`, `mtp:2`, `ngram:auto`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from paceline.bench.here import EngineArm
from paceline.config import MAX_SPECULATIVE_TOKENS, EngineConfig
from paceline.drafters import drafter_names
from paceline.errors import UserError
from paceline.llm import engine_config
from paceline.loaded import Loaded
from paceline.speculative_config import AUTO

BASELINE = "none"
_NAME = re.compile(r"(?:([a-z-]+):)?(auto|[0-9]{1,2})")


def arm_options(name: str, drafter: str) -> dict[str, Any]:
    """Options of the engine for an arm; `drafter` is the one meant where the name holds none.

    Example: arm_options("ngram:2", "mtp") = {"drafter": "ngram", "num_speculative_tokens": 2}. Raises `UserError` for
    a name that means nothing."""
    if name == BASELINE:
        return {"drafter": BASELINE}
    known = [drafter for drafter in drafter_names() if drafter != BASELINE]
    if name in known:
        return {"drafter": name}
    found = _NAME.fullmatch(name)
    who, width = found.groups() if found else (None, "")
    if not found or who not in (None, *known) or (width != AUTO and int(width) > MAX_SPECULATIVE_TOKENS):
        raise UserError(
            f"There is no arm {name[:40]!r}: arms are none, auto, a number of drafts up to {MAX_SPECULATIVE_TOKENS}, a "
            f"drafter ({', '.join(known)}), or both as in {known[0]}:2."
        )
    return {"drafter": who or drafter, "num_speculative_tokens": AUTO if width == AUTO else int(width)}


def speculation_field(name: str, drafter: str | None) -> dict[str, Any]:
    """The same for one request to Paceline's server. drafter None: the server's own."""
    options = arm_options(name, drafter or "")
    return {key: value for key, value in options.items() if value != ""}


def parse_arms(given: str) -> list[str]:
    """Names, each once, in their order. Raises `UserError` for names that mean nothing, and for fewer than one."""
    names = list(dict.fromkeys(part.strip() for part in given.split(",") if part.strip()))
    if not names:
        raise UserError("There is no arm to measure; name some, as in --arms none,auto.")
    for name in names:
        arm_options(name, "mtp")
    return names


def engine_arms(loaded: Loaded, names: Sequence[str], base: dict[str, Any]) -> list[EngineArm]:
    """An engine for each, on the same weights. base: options that all share."""
    drafter = base.get("drafter", EngineConfig.drafter)
    shared = {name: value for name, value in base.items() if name != "drafter"}
    arms = [EngineArm(name, loaded.engine(_config(shared, arm_options(name, drafter)))) for name in names]
    for arm in arms:
        arm.engine.preallocate()
    return arms


def _config(shared: dict[str, Any], own: dict[str, Any]) -> EngineConfig:
    """What belongs to one drafter only is left out for another. How many drafts is the arm's to say; left out, it is
    the engine's own choice."""
    shared = {k: v for k, v in shared.items() if k != "num_speculative_tokens"}
    if "mtp" not in own["drafter"].split(","):
        modules = ("draft_model", "draft_quantization", "draft_window", "mtp_modules")
        shared = {k: v for k, v in shared.items() if k not in modules}
    return engine_config(EngineConfig(), shared | own)
