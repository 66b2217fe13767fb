"""Prompts to measure with: bundled held-out ones, ShareGPT, Spec-Bench or MT-Bench questions, plain lines, random ids.

Files are read only as far as they are needed, line by line or entry by entry, so that a file may be of any size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from paceline.assets import heldout_prompts
from paceline.bench.json_stream import MAX_ENTRY, entries
from paceline.errors import UserError
from paceline.llm import Messages, is_messages

HELD_OUT, RANDOM = "heldout", "random"
JSON_SUFFIXES, LINE_SUFFIXES = (".json",), (".jsonl", ".ndjson")
MAX_PROMPTS = 1 << 20


@dataclass(frozen=True)
class Prompt:
    """content: text to continue, or a chat. turns: what the user says after the answer to it (Spec-Bench)."""

    content: str | Messages
    name: str
    source: str
    turns: tuple[str, ...] = ()


def read_dataset(name: str, limit: int, source: str | None = None) -> list[Prompt]:
    """The first `limit` prompts of `heldout` or of a file, those of one source only if that is named.

    A .json file is ShareGPT's list. A line of a .jsonl file is an object with `turns` (Spec-Bench, MT-Bench),
    `conversations` (ShareGPT), `messages` or `prompt`. A line of any other file is a prompt. Raises `UserError` that
    names the line or entry, or the sources when there is no such one."""
    seen: set[str] = set()
    found: list[Prompt] = []
    for prompt in islice(_prompts(name), MAX_PROMPTS):
        seen.add(prompt.source)
        if source in (None, prompt.source):
            found.append(prompt)
        if len(found) == limit:
            break
    if not found and source is not None and seen:
        raise UserError(f"There is no source {source!r} in {name}; its sources are {', '.join(sorted(seen))}.")
    if not found:
        raise UserError(f"{name} holds no prompt; write one a line.")
    return found


def _prompts(name: str) -> Iterator[Prompt]:
    if name == HELD_OUT:
        return (Prompt(p.content, p.id, p.source) for p in heldout_prompts())
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"There is no dataset {name}: give {HELD_OUT}, {RANDOM} or a file of prompts.")
    suffix = path.suffix.lower()
    if suffix in JSON_SUFFIXES:
        return (_of_row(row, where, path.stem) for where, row in entries(path))
    return _of_lines(path, structured=suffix in LINE_SUFFIXES)


def _of_lines(path: Path, structured: bool) -> Iterator[Prompt]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number in range(1, MAX_PROMPTS):
                line, where = file.readline(MAX_ENTRY + 1), f"{path}:{number}"
                if len(line) > MAX_ENTRY:
                    raise UserError(f"{where}: the line is longer than {MAX_ENTRY} characters; shorten it.")
                if not line:
                    return
                if line.strip():
                    text = line.rstrip("\r\n")
                    yield (
                        _of_row(_parsed(text, where), where, path.stem)
                        if structured
                        else Prompt(text, f"{path.stem}/{number}", path.stem)
                    )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}); check the path and the encoding.") from error


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); write one object a line.") from error


def _of_row(row: Any, where: str, stem: str) -> Prompt:
    """A row of whatever dataset; raises `UserError` for one that says nothing."""
    shape = row if isinstance(row, dict) else {}
    name = str(shape.get("question_id", shape.get("id", where.rpartition(":")[2])))
    source = str(shape.get("category", shape.get("source", stem)))
    if "turns" in shape:
        first, *more = _texts(shape["turns"], where)
        return Prompt(_question(first), name, source, tuple(more))
    if "conversations" in shape:
        return Prompt(_question(_first_said(shape["conversations"], where)), name, source)
    if "messages" in shape:
        messages = shape["messages"]
        good = messages and is_messages(messages) and all(isinstance(m["content"], str) for m in messages)
        if not good:
            raise UserError(f'{where}: "messages" must be a list of objects with "role" and "content" as text.')
        return Prompt(messages, name, source)
    if "prompt" in shape:
        return Prompt(_texts([shape["prompt"]], where)[0], name, source)
    raise UserError(f'{where}: write an object with "prompt", "messages", "turns" or "conversations".')


def _question(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise UserError(f"{where}: the prompt must be text, and not empty.")
    return value


def _first_said(value: Any, where: str) -> str:
    """What the first speaker of a ShareGPT conversation says."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, dict):
        raise UserError(f'{where}: "conversations" must be a list of objects with "from" and "value".')
    return _texts([first.get("value")], where)[0]
