"""Where a request ends: EOS, stop tokens, stop strings, grammars and lengths, looked at token by token, in one place.

Knows no tokenizer: text comes from a decoder that is handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from paceline.request import Request


class Decoder(Protocol):
    """Token ids in, text out, never half a character (`tokenizer.IncrementalDecoder`)."""

    def push(self, ids: Iterable[int]) -> str: ...

    def flush(self) -> str: ...


class TextStream:
    """What a request has said, as text that ends before the first stop string.

    Without stop strings nothing is decoded before somebody asks. `take` holds back what might become a stop string.

    Example: stop ("END",), tokens "a", "E", "N", "x": take() gives "a", "", "", "ENx".
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str] = ()) -> None:
        self._decoder, self._stop = decoder, tuple(stop)
        self._reach = max(map(len, self._stop), default=1) - 1
        self._pending: list[int] = []
        self._text = ""
        self._taken = 0
        self._closed = False

    def append(self, token: int, may_stop: bool = True) -> bool:
        """One more token; True when it completes a stop string, where the text is cut and closed."""
        self._pending.append(token)
        if not self._stop:
            return False
        searched = max(0, len(self._text) - self._reach)
        self._decode()
        if not may_stop:
            return False
        found = [at for stop in self._stop if (at := self._text.find(stop, searched)) >= 0]
        if found:
            self._text, self._closed = self._text[: min(found)], True
        return bool(found)

    @property
    def may_stop(self) -> bool:
        """Whether a stop string may end it."""
        return bool(self._stop)

    def extend(self, tokens: list[int]) -> None:
        """As `append` one by one, where no stop string can end it."""
        self._pending += tokens

    def close(self) -> None:
        """No more tokens come: nothing is held back any longer."""
        if not self._closed:
            self._decode()
            self._text += self._decoder.flush()
            self._closed = True

    @property
    def text(self) -> str:
        """All of it so far, whatever was taken."""
        self._decode()
        return self._text

    def take(self) -> str:
        """What is new and certain since the last call."""
        self._decode()
        end = len(self._text) - (0 if self._closed else self._held_back())
        new, self._taken = self._text[self._taken : end], max(end, self._taken)
        return new

    def _held_back(self) -> int:
        """The longest end of the text that begins a stop string."""
        if not self._stop:
            return 0
        lengths = (n for stop in self._stop for n in range(len(stop) - 1, 0, -1) if self._text.endswith(stop[:n]))
        return max(lengths, default=0)

    def _decode(self) -> None:
        if self._pending:
            self._text += self._decoder.push(self._pending)
            self._pending = []


class Ending:
    """The conditions that end one request. Kept apart from the request, since it holds a decoder."""

    def __init__(
        self, request: Request, eos_token_ids: Sequence[int], max_model_len: int, text: TextStream | None = None
    ) -> None:
        params = request.params
        self.text, self._grammar = text, request.grammar
        self.longest = min(request.num_prompt + params.max_tokens, max_model_len)
        self._shortest = request.num_prompt + params.min_tokens
        self._stop = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else eos_token_ids)
        self._plain = self._grammar is None and not (text is not None and text.may_stop)
        self.tokens = tuple(self._stop)

    @property
    def plain(self) -> bool:
        """Whether nothing but one of `tokens` and lengths can end it."""
        return self._plain

    def cut(self, length: int, emitted: list[int]) -> tuple[list[int], str | None]:
        """What is kept of the tokens that follow the first `length` ones, and the finish reason if it ends there.

        An EOS or stop token is kept, but is no part of the text. A grammar that comes to its end needs none; one that
        cannot go on ends the request with what it had."""
        if self._plain and self._stop.isdisjoint(emitted):
            return self._cut_to_length(length, emitted)
        grammar = self._grammar
        if grammar is not None and grammar.error is not None:
            return [], "error"
        for count, token in enumerate(emitted, 1):
            may_stop = length + count >= self._shortest
            if may_stop and token in self._stop:
                return emitted[:count], "stop"
            if self.text is not None and self.text.append(token, may_stop):
                return emitted[:count], "stop"
            if grammar is not None and grammar.commit(token):
                return emitted[:count], "stop"
            if length + count >= self.longest:
                return emitted[:count], "length"
        return emitted, None

    def _cut_to_length(self, length: int, emitted: list[int]) -> tuple[list[int], str | None]:
        """As `cut`, where nothing else can end it: without a look at each token."""
        kept = emitted[: self.longest - length]
        if self.text is not None:
            self.text.extend(kept)
        return kept, "length" if length + len(kept) >= self.longest else None
