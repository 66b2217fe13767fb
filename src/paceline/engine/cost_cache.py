"""Tables of costs on disk, and what policies learned beyond them, under names made of what both depend on: a second
start measures nothing, and knows what the first one found out."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paceline.errors import UserError
from paceline.spec.cost import CostTable

MAX_BYTES = 4 << 20


def cached_table(about: Mapping[str, Any], measure: Callable[[], CostTable]) -> CostTable:
    """The table measured before for the same `about`, or one measured now, and kept if the disk takes it.

    about: plain values: all that costs depend on."""
    file = _file("costs", about)
    table = _table(file)
    if table is None:
        table = measure()
        _write(file, {"about": dict(about), **table.as_dict()})
    return table


class Learned:
    """What policies learned where costs are as `about` says. Of engines that run at once the last to write is kept."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._file = _file("learned", about)

    def read(self) -> dict[str, Any]:
        """Nothing where nothing was kept, or what was is damaged."""
        found = _json(self._file)
        return found if isinstance(found, dict) else {}

    def write(self, known: Mapping[str, Any]) -> None:
        _write(self._file, known)


def _file(kind: str, about: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_home / "paceline" / f"{kind}-{digest[:32]}.json"


def _table(file: Path) -> CostTable | None:
    """None for a file that is missing or damaged: it is made again."""
    try:
        return CostTable.from_dict(_json(file))
    except (ValueError, UserError):
        return None


def _json(file: Path) -> Any:
    """None for a file that is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all. A disk that is full or read-only only costs the next start some seconds."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as work:
            made = Path(work) / file.name
            made.write_text(json.dumps(content, default=str), encoding="utf-8")
            made.replace(file)
    except OSError:
        return
