"""Prompts from the command line or from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paceline.errors import UserError

Messages = list[dict[str, str]]
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")


def collect_prompts(prompt: str | None, file: str | None) -> list[str | Messages]:
    """The one prompt, or those of the file; raises `UserError` when there is none, or both are given."""
    if prompt is not None and file is not None:
        raise UserError("PROMPT and --prompts-file exclude each other; give one of them.")
    if file is not None:
        return read_prompts(Path(file))
    if prompt is None:
        raise UserError("There is nothing to do: give a PROMPT or --prompts-file FILE.")
    if not prompt.strip():
        raise UserError("The prompt is empty; write something in it.")
    return [prompt]


def read_prompts(path: Path) -> list[str | Messages]:
    """One prompt a line: JSON objects with `prompt` or `messages` in a .jsonl file, plain text in any other.

    Blank lines are skipped. Raises `UserError` that names file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also cut at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}); check the path and the encoding.") from error
    structured = path.suffix.lower() in JSONL_SUFFIXES
    found: list[str | Messages] = [
        _parse(line, f"{path}:{number}") if structured else line for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise UserError(f"{path} holds no prompt; write one a line.")
    return found


def _parse(line: str, where: str) -> str | Messages:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); write one object a line.") from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise UserError(f'{where}: write an object with either "prompt" or "messages".')
    return _text(row["prompt"], where) if "prompt" in row else _messages(row["messages"], where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f'{where}: "prompt" must be text, and not empty.')
    return value


def _messages(value: Any, where: str) -> Messages:
    good = (
        isinstance(value, list)
        and value
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
        )
    )
    if not good:
        raise UserError(f'{where}: "messages" must be a list of objects with "role" and "content" as text.')
    return list(value)
