"""Reads training examples: JSONL files of conversations and plain texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import UserError
from paceline.tokenizer_training import ROLES


@dataclass(frozen=True)
class Example:
    """A conversation (`messages`), a plain `text`, or an answer as token ids to a prompt of token ids, as
    `paceline generate --json` writes them; `source` is the file's name without its ending."""

    source: str
    messages: list[dict[str, str]] | None = None
    text: str | None = None
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()

    def texts(self) -> Iterator[str]:
        """What a tokenizer learns from."""
        if self.text is not None:
            yield self.text
        for message in self.messages or []:
            yield message["content"]


def jsonl_files(paths: list[Path]) -> list[Path]:
    """Files as they are, directories as their *.jsonl in order of name. Raises UserError for a path that gives none."""
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise UserError(f"{path} is no JSONL file and no directory of them; give the path of the training text.")
        files += found
    return files


def read_examples(files: list[Path]) -> Iterator[Example]:
    """All examples in order. Raises UserError that names file and line of the first one which cannot be read."""
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _example(line, file, number)


def _example(line: bytes, file: Path, number: int) -> Example:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        raise _unreadable(file, number, "is not valid JSON") from None
    example = _of_object(raw, file.stem)
    if example is None:
        problem = 'has neither a "text" nor "messages" of role and content nor "prompt_token_ids" and "token_ids"'
        raise _unreadable(file, number, problem)
    unknown = {message["role"] for message in example.messages or []} - set(ROLES)
    if unknown:
        raise _unreadable(file, number, f"has the role {sorted(unknown)[0]!r}, which is none of {', '.join(ROLES)}")
    if not all(map(_is_unicode, example.texts())):
        raise _unreadable(file, number, "holds characters that are not Unicode (lone surrogates)")
    return example


def _of_object(raw: Any, source: str) -> Example | None:
    if isinstance(raw, dict) and _are_ids(raw.get("prompt_token_ids")) and _are_ids(raw.get("token_ids")):
        return Example(source, prompt_ids=tuple(raw["prompt_token_ids"]), answer_ids=tuple(raw["token_ids"]))
    if isinstance(raw, dict) and isinstance(raw.get("text"), str) and raw["text"]:
        return Example(source, text=raw["text"])
    if isinstance(raw, dict) and _is_conversation(raw.get("messages")):
        return Example(source, messages=raw["messages"])
    return None


def _are_ids(ids: Any) -> bool:
    return isinstance(ids, list) and bool(ids) and all(type(i) is int and 0 <= i < 2**31 for i in ids)


def _is_conversation(messages: Any) -> bool:
    return isinstance(messages, list) and bool(messages) and all(map(_is_message, messages))


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unreadable(file: Path, number: int, problem: str) -> UserError:
    return UserError(f"{file}:{number} {problem}: mend or remove that line.")
