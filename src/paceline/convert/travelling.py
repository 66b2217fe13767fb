"""The small files of a checkpoint that go with its weights wherever they are written anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paceline.checkpoint.reader import check_inside

TRAVELS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def travelling(source: Path) -> Iterator[Path]:
    """Tokenizer and generation settings of a checkpoint; nothing else, and no code.

    Raises UserError for a link that leads out of it."""
    for file in (source / name for name in TRAVELS):
        if file.is_file():
            check_inside(file)
            yield file
