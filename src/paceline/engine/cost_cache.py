"""Tables of costs on disk, under a name made of what they depend on: a second start measures nothing."""

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
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = cache_home / "paceline" / f"costs-{digest[:32]}.json"
    table = _read(file)
    if table is None:
        table = measure()
        _write(file, {"about": dict(about), **table.as_dict()})
    return table


def _read(file: Path) -> CostTable | None:
    """None for a file that is missing or damaged: it is made again."""
    try:
        if file.stat().st_size > MAX_BYTES:
            return None
        return CostTable.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, UserError):
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
