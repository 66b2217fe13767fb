"""What the package ships beside code: held-out prompts and the bundled model (sources and licences in SOURCES.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class HeldOut:
    """A prompt that the bundled model was not trained on: a chat that waits for its answer, or text to continue."""

    id: str
    source: str
    content: str | list[dict[str, str]]

    @property
    def question(self) -> str:
        """What a person reads: the text, or the last message of the chat."""
        return self.content if isinstance(self.content, str) else self.content[-1]["content"]


def demo_prompts() -> list[HeldOut]:
    """A dozen short prompts to watch."""
    return _read("prompts.jsonl")


def heldout_prompts() -> list[HeldOut]:
    """All 242 prompts, sources in turn, so that the first N of them are a fair N."""
    return _read("heldout.jsonl")


def _read(name: str) -> list[HeldOut]:
    lines = (_HERE / name).read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [HeldOut(row["id"], row["source"], row.get("messages") or row["prompt"]) for row in rows]
