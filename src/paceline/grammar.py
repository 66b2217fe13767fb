"""Grammars at work: which tokens may follow what a request has said, and what a draft would make of it.

llguidance compiles grammars and walks them; this is the one file that knows it. A mask depends on the tokens before it
alone, so that drafter and verifier see the same one, and the text does not depend on what was drafted.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.errors import UserError
from paceline.structured import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 64  # compiled grammars, the latest used
MOST_FORCED = 16  # forced tokens in a draft: each is right, but takes a row of the pass
NOTHING = "no text satisfies it"  # which the library calls NoExtensionBias
MOST_STATES = 50_000  # of a grammar's automaton, one or two KB each; they are made when a text comes to them
LONGEST_REASON = 200  # characters of what the library says of a bad grammar


class Source(Protocol):
    """The tokenizer, as far as grammars look at it."""

    def to_json(self) -> str:
        """The text of its tokenizer.json."""
        ...


class Grammars:
    """Compiles grammars for one tokenizer and keeps the latest; may be called from several threads.

    vocab_size: columns of the model's logits; eos_token_ids: what may end an answer where the grammar lets it end."""

    def __init__(self, tokenizer: Source, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._source, self._vocab_size, self._eos = tokenizer, vocab_size, list(eos_token_ids)
        self.compiled = lru_cache(maxsize=KEPT)(self._compile)

    def start(self, asked: StructuredOutputsParams) -> Grammar:
        """A grammar at its beginning. Raises `UserError` for one that cannot be used, with the library's reason."""
        return Grammar(self.compiled(asked).deep_copy(), self._vocab_size)

    def prepare(self) -> None:
        """Does at once what the first grammar would wait for: a second or so, for a large vocabulary."""
        with suppress(UserError):
            _ = self._tokenizer

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        make: type[LLTokenizer] = library().LLTokenizer
        try:
            return make(self._source.to_json(), n_vocab=self._vocab_size, eos_token=self._eos or None)
        except ValueError as error:
            raise UserError(f"This model's tokenizer cannot do structured outputs: {_reason(str(error))}.") from None

    def _compile(self, asked: StructuredOutputsParams) -> LLMatcher:
        llguidance, tokenizer = library(), self._tokenizer
        limits = llguidance.LLParserLimits(verbose_errors=False, max_lexer_states=MOST_STATES)
        try:
            text = _library_text(asked)
            matcher: LLMatcher = llguidance.LLMatcher(tokenizer, text, log_level=0, limits=limits)
        except ValueError as error:  # also of text that is not Unicode
            raise _refused(asked, str(error)) from None
        trial = matcher.deep_copy()
        if trial.is_error() or not any(trial.compute_bitmask()) or trial.is_error():
            raise _refused(asked, trial.get_error())
        return matcher


class Grammar:
    """Where one answer stands in its grammar.

    The matcher stands behind the committed tokens and some draft, and walks back and forth between drafts. What is
    forced is asked once for a run of forced tokens: behind the first of them the others are. A mask is computed where
    `answer` cannot tell, and kept until tokens are committed: the verifier does not compute the drafter's again."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._mask_bytes = matcher, -(-vocab_size // 32) * 4
        self._path: list[int] = []  # what it has read beyond the committed tokens
        self._forced = [self._look()]  # what must follow the committed tokens, and each token of the path, as views
        self._masks: dict[tuple[int, ...], bytes] = {}

    @property
    def error(self) -> str | None:
        """Why the answer cannot go on: on the way, the grammar proved to lead nowhere, or to take too long."""
        return _reason(self._matcher.get_error()) if self._matcher.is_error() else None

    def mask(self, path: Sequence[int]) -> bytes:
        """Which tokens may follow the committed ones and the path, a bit each, the lowest of the first byte first.

        Behind a draft that the grammar refuses, all: no such place is ever reached."""
        place = tuple(path)
        found = self._masks.get(place)
        if found is None:
            inside = self._go(path)
            forced = self._forced[-1]
            found = self._only(forced[0]) if inside and forced else self._matcher.compute_bitmask()[: self._mask_bytes]
            if not inside or self._matcher.is_error():
                found = b"\xff" * len(found)
            self._masks[place] = found
        return found

    def sure(self, path: Sequence[int]) -> int | None:
        """The token that must follow the path, as far as that is known without going there."""
        here, length = self._path, len(path)
        if length <= len(here):
            return self._forced[length][0] if self._forced[length] and here[:length] == path else None
        run, ahead = self._forced[-1], length - len(here)
        known = len(run) > ahead and path[: len(here)] == here and run[:ahead].tolist() == path[len(here) :]
        return run[ahead] if known else None

    def answer(self, path: Sequence[int], wish: int) -> int | None:
        """What follows the path where `wish` is the best of all tokens: itself if allowed, or what is forced; None
        where only the mask can tell. Costs a fifth of a mask, and leaves the matcher behind that token."""
        here, length = self._path, len(path)
        if here[:length] == path and len(here) > length and here[length] == wish:
            return wish
        if not self._go(path):
            return wish
        forced = self._forced[-1]
        if forced:
            wish = forced[0]
        return wish if self._step(wish) else None

    def forced(self, path: Sequence[int], most: int) -> list[int]:
        """The tokens that must follow the committed ones and the path, as far as there is no choice; `most` of them."""
        return self._forced[-1][:most].tolist() if most > 0 and self._go(path) else []

    def room(self, width: int) -> tuple[int, int]:
        """For a request that may have `width` drafts: how many to make, and how many places to keep.

        Where as many tokens are forced as may be drafted, drafting them is wasted work; else there is room for what may
        be forced behind the drafts. Example: width 4 and 5 tokens forced: no draft is made, and 5 places are kept."""
        forced = min(len(self._forced[0]), MOST_FORCED)
        return (0, forced) if forced >= width else (width, width + MOST_FORCED // 2)

    def allowed(self, path: Sequence[int]) -> int:
        """How many of these tokens, one after the other, may follow the committed ones."""
        self._go(path)
        return len(self._path)

    def commit(self, token: int) -> bool:
        """One more committed token. Whether the answer is complete: nothing may follow."""
        self._masks.clear()
        if not self._path or self._path[0] != token:
            self._go([])
            if not self._step(token):  # then the matcher is in error, or will be
                self._matcher.consume_token(token)
                return False
        del self._path[0], self._forced[0]
        return not self._path and self._matcher.is_stopped() and not self._matcher.is_error()

    def _go(self, path: Sequence[int]) -> bool:
        """Walks to the end of the path, or as far as the grammar allows; whether it got there."""
        here = self._path
        if here == path:
            return True
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(here, path, strict=False)))
        if same < len(here):
            self._matcher.rollback(len(here) - same)
            del here[same:], self._forced[same + 1 :]
        return all(self._step(token) for token in path[same:])

    def _step(self, token: int) -> bool:
        """One token further, unless the grammar refuses it."""
        run = self._forced[-1]
        if (run and run[0] != token) or not self._matcher.try_consume_tokens([token]):
            return False
        self._path.append(token)
        self._forced.append(run[1:] if run else self._look())
        return True

    def _look(self) -> memoryview[int]:
        """The tokens that must follow where the matcher stands. Making tokens of bytes is slow, where there are any."""
        return memoryview(array("q", self._matcher.compute_ff_tokens() if self._matcher.compute_ff_bytes() else ()))

    def _only(self, token: int) -> bytes:
        return (1 << token).to_bytes(self._mask_bytes, "little")


def forbidden(masks: Sequence[bytes], vocab_size: int) -> NDArray[np.bool_]:
    """Of each mask the tokens that it does not allow, [len(masks), vocab_size]."""
    packed = np.frombuffer(b"".join(masks), dtype=np.uint8).reshape(len(masks), -1)
    bits = np.unpackbits(np.invert(packed), axis=1, count=vocab_size, bitorder="little")
    return bits.view(np.bool_)


def library() -> Any:
    """llguidance. Raises `UserError` where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise UserError("Structured outputs need llguidance; install it with pip install llguidance.") from None
    return llguidance


def _library_text(asked: StructuredOutputsParams) -> str:
    """What was asked for in the library's own form. Raises `ValueError`."""
    llguidance = library()
    if asked.form in ("json", "json_object"):
        schema = asked.json if asked.json is not None else '{"type": "object"}'
        space = asked.whitespace_pattern
        flags = {"whitespace_flexible": False} if space is None else {"whitespace_pattern": space}
        text: str = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=flags)
        return text
    given = getattr(asked, asked.form)
    text = llguidance.grammar_from(asked.form, given if isinstance(given, str) else json.dumps(given))
    return text


def _refused(asked: StructuredOutputsParams, said: str) -> UserError:
    what = "JSON schema" if asked.form == "json" else asked.form
    return UserError(f"The {what} cannot be used: {_reason(said)}; change it.")


def _reason(said: str) -> str:
    """The library's reason in one line, without the picture of the place.

    Example: "at 1(8): invalid regex\\n    (\\n    ^\\nerror: unclosed group" is "unclosed group"."""
    lines = [line.strip() for line in said.partition("<")[0].splitlines() if line.strip()]
    told = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    found = (told or lines or ["NoExtensionBias"])[0].rstrip(".")[:LONGEST_REASON]
    return found.replace("NoExtensionBias", NOTHING)
