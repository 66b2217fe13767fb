"""PaddleNLP's data files: a JSON object a line, with `src` and `tgt`, as texts or as lists of turns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.compat.start import Messages
from paceline.errors import UserError

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
MAX_DATA_BYTES = 256 << 20


@dataclass(frozen=True)
class Example:
    """`src` and `tgt` as they are in the file, to be written back; `turns`: what was said, the question last;
    `expected`: the answer in the file, if it has one."""

    src: Any
    tgt: Any
    turns: list[str]
    expected: str = ""

    @property
    def question(self) -> str:
        return self.turns[-1]

    def messages(self) -> Messages:
        """Questions and answers in turn."""
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(self.turns)]


def read_examples(path: Path) -> list[Example]:
    """One a line: JSON where the file's name says so (.json, .jsonl), plain questions otherwise.

    Raises `UserError` that names file and line."""
    try:
        if path.stat().st_size > MAX_DATA_BYTES:
            raise UserError(f"{path} is larger than {MAX_DATA_BYTES} bytes; cut it in parts.")
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also cut at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}); check the path and the encoding.") from error
    structured = path.suffix.lower() in JSON_SUFFIXES
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"{path} holds no prompt; write one a line.")
    return [_parse(line, f"{path}:{n}") if structured else Example(line, "", [line]) for n, line in numbered]


def _parse(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); write one object a line.") from error
    if not isinstance(row, dict) or "src" not in row:
        raise UserError(f'{where}: write an object with "src" (and "tgt").')
    src, tgt = row["src"], row.get("tgt", "")
    questions, answers = _texts(src), _texts(tgt)
    told = answers[: len(questions) - 1]
    if not questions or len(told) < len(questions) - 1 or not all(text.strip() for text in (*questions, *told)):
        raise UserError(f'{where}: "src" must be text, or a list of texts of which "tgt" answers all but the last.')
    turns = [text for pair in zip(questions[:-1], told, strict=True) for text in pair]
    return Example(src, tgt, [*turns, questions[-1]], "".join(answers[len(questions) - 1 : len(questions)]))


def _texts(value: Any) -> list[str]:
    """One text or several; nothing for whatever else."""
    listed = value if isinstance(value, list) else [value]
    return listed if all(isinstance(text, str) for text in listed) else []
