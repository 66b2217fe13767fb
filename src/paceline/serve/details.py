"""Who wrote each token of a chat's answer: the `paceline` field that `{"paceline": {"tokens": true}}` asks for."""

from __future__ import annotations

from typing import Any

from paceline.serve.answers import Whole
from paceline.serve.logprobs import LEAST
from paceline.serve.text import Delta
from paceline.tokenizer import IncrementalDecoder, Tokenizer


class TokenDetails:
    """Of one answer, part by part, in order. The parts' tokens are those of the text, and of what ended it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, IncrementalDecoder(tokenizer)

    def of(self, part: Delta | Whole) -> dict[str, Any]:
        """`tokens`, and with the last part `timing`, in the engine's own time."""
        rows = zip(part.tokens, part.origins, part.rejected, part.logprobs, strict=True)
        tokens = [self._entry(*row) for row in rows]
        if part.finished is None:
            return {"tokens": tokens}
        tokens[-1]["text"] += self._decoder.flush()
        return {"tokens": tokens, "timing": vars(part.finished.timing)}

    def _entry(self, token: int, origin: int, rejected: int | None, row: dict[int, float]) -> dict[str, Any]:
        """text: what the token adds to the answer's; nothing while a character lacks a part, or if it is special."""
        return {
            "id": token,
            "text": self._decoder.push([token]),
            "origin": origin,
            "logprob": max(row[token], LEAST),
            "rejected": None if rejected is None else self._draft(rejected, row[rejected]),
        }

    def _draft(self, token: int, value: float) -> dict[str, Any]:
        return {"id": token, "text": self._tokenizer.token(token), "logprob": max(value, LEAST)}
