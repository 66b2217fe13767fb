"""Text coloured by who wrote it: the target, or an accepted draft of some depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from paceline.tokenizer import Tokenizer

# Index: origin of the token. 0 the target; the last colour is for every further depth.
STYLES = ("default", "green", "cyan", "magenta", "yellow")
NAMES = ("target", "draft 1", "draft 2", "draft 3", "draft 4 and on")


def style_of(origin: int) -> str:
    return STYLES[max(0, min(origin, len(STYLES) - 1))]  # -1: forced by a grammar, nobody's draft


def legend(depths: int) -> Text:
    """One line that names the colours of the target and of `depths` depths."""
    shown = range(min(depths, len(STYLES) - 1) + 1)
    return Text("  ").join(Text(f"■ {NAMES[origin]}", style=style_of(origin)) for origin in shown)


class Painter:
    """Collects `text`, each character in the colour of the token that completed it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from paceline.tokenizer import IncrementalDecoder

        self._decoder = IncrementalDecoder(tokenizer)
        self.text = Text()

    def add(self, token_ids: Sequence[int], origins: Sequence[int]) -> None:
        for token, origin in zip(token_ids, origins, strict=True):
            self.text.append(self._decoder.push([token]), style=style_of(origin))
