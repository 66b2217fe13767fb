"""One file a drafter: it holds one class whose `name` is the file's name (with `-` for `_`), and is known by that name.

The class has `build(config, target_runner)`, which makes it from the engine's configuration and the target it drafts
for, and is a `Drafter` (see `base`). Nothing is registered by hand, and a drafter is imported only when asked for.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any, cast

from paceline.config import EngineConfig
from paceline.drafters.base import Drafter
from paceline.errors import UserError


def drafter_names() -> list[str]:
    """The names that `build_drafter` knows, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if module.name != "base")


def build_drafter(name: str, config: EngineConfig, target_runner: Any) -> Drafter:
    """The drafter of that name for that target. Raises `UserError` for an unknown name, or from its `build`."""
    if name not in drafter_names():
        raise UserError(f"drafter {name!r} is not known; use one of {', '.join(drafter_names())}.")
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    found = [thing for thing in vars(module).values() if isinstance(thing, type) and vars(thing).get("name") == name]
    assert len(found) == 1, f"{module.__name__} must hold one class with name = {name!r}"
    return cast(Drafter, found[0].build(config, target_runner))  # type: ignore[attr-defined]
