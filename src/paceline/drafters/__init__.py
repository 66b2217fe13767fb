"""One file a drafter: it holds one class whose `name` is the file's name (with `-` for `_`), and is known by that name.

The class has `build(config, target_runner)`, which makes it from the engine's configuration and the target it drafts
for, and is a `Drafter` (see `base`). Nothing is registered by hand, and a drafter is imported only when asked for.
`several` makes one of many.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any, cast

from paceline.config import EngineConfig
from paceline.drafters.base import Drafter
from paceline.drafters.several import SeveralDrafters
from paceline.errors import UserError

_NO_DRAFTERS = ("base", "several")


def drafter_names() -> list[str]:
    """The names that `build_drafter` knows, sorted."""
    files = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in files if name not in _NO_DRAFTERS)


def build_drafter(name: str, config: EngineConfig, target_runner: Any) -> Drafter:
    """The drafter of that name for that target, or of several names with commas between them. Raises `UserError` for an
    unknown name, or from its `build`."""
    names = name.split(",")
    if len(names) > 1:
        if len(set(names)) < len(names) or "none" in names:
            raise UserError(
                f"drafter {name!r} must name different drafters, none not among them: mtp,ngram is an example."
            )
        return SeveralDrafters([build_drafter(each, config, target_runner) for each in names])
    if name not in drafter_names():
        raise UserError(f"drafter {name!r} is not known; use one of {', '.join(drafter_names())}.")
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    found = [thing for thing in vars(module).values() if isinstance(thing, type) and vars(thing).get("name") == name]
    assert len(found) == 1, f"{module.__name__} must hold one class with name = {name!r}"
    return cast(Drafter, found[0].build(config, target_runner))  # type: ignore[attr-defined]
