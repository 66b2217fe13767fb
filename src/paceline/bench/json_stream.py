"""The entries of a JSON list, one after the other, from a file of any size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paceline.errors import UserError

MAX_ENTRY = 16 << 20  # characters of one entry
PIECE = 1 << 20


def entries(path: Path, piece: int = PIECE) -> Iterator[tuple[str, Any]]:
    """(where it stands, entry); reads no further than it is asked. Raises `UserError` that names the entry.

    Example: `[{"a": 1}, {"a": 2}]` gives ("FILE:1", {"a": 1}) and ("FILE:2", {"a": 2})."""
    decoder, number, text, begun = json.JSONDecoder(), 0, "", False
    try:
        with path.open(encoding="utf-8-sig") as file:
            while True:
                more = file.read(piece)
                text += more
                if not begun and (text := text.lstrip()):
                    begun, text = _opened(text, path), text[1:]
                while begun and (text := _after_comma(text, number)):
                    where = f"{path}:{number + 1}"
                    if text[0] == "]":
                        return
                    try:
                        entry, end = decoder.raw_decode(text)
                    except (ValueError, RecursionError) as error:
                        # Not whole yet, or never: only more text can tell.
                        if more and len(text) <= MAX_ENTRY:
                            break
                        raise UserError(f"{where}: not valid JSON ({error}); mend that entry.") from error
                    number, text = number + 1, text[end:]
                    yield where, entry
                if not more:
                    raise UserError(f"{path} ends in the middle of its list, after entry {number}; fetch it again.")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}); check the path and the encoding.") from error


def _opened(text: str, path: Path) -> bool:
    if text[0] != "[":
        raise UserError(f"{path} must hold a JSON list, as ShareGPT's files do; name a file of lines .jsonl.")
    return True


def _after_comma(text: str, number: int) -> str:
    """The text from the next entry, or the list's end, on; empty where that has not been read yet."""
    text = text.lstrip()
    return text[1:].lstrip() if number and text.startswith(",") else text
