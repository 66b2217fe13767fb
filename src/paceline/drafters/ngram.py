"""Prompt lookup: find the last n tokens earlier in the text and propose what followed them there.

The longest n that is found wins, from ngram_max down to ngram_min. Of several places the earliest is taken, so the
prompt is searched before the generated text, as in PaddleNLP's "inference with reference" and vLLM's ngram drafter.
(The idea: Yang et al. 2023, arXiv:2304.04487; Saxena 2023, "prompt lookup decoding".) The text is one sequence: an
n-gram, and what followed it, may run from the prompt into the generated part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paceline.config import EngineConfig
from paceline.drafters.base import Deeper, OnHost, Seen
from paceline.request import Request
from paceline.spec.proposal import Proposal


class NgramDrafter(OnHost):
    """Drafts chains from each request's own text. It needs no model and no memory but an index per running request."""

    name = "ngram"
    suspects = None
    quantization: str | None = None
    pools = ()
    at_once = False

    def __init__(self, ngram_min: int, ngram_max: int, max_tokens: int) -> None:
        self.ngram_min, self.ngram_max, self.max_tokens = ngram_min, ngram_max, max_tokens
        self._indexes: dict[int, _Index] = {}

    @classmethod
    def build(cls, config: EngineConfig, target_runner: Any) -> NgramDrafter:
        return cls(config.ngram_min, config.ngram_max, config.most_speculative_tokens)

    def observe(self, seen: Seen) -> None:
        """Nothing to do: `propose` reads the committed tokens from the requests themselves."""

    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        return Proposal(
            [
                [request.tokens[-1], *self._drafts(request, min(width, self.max_tokens))]
                for request, width in zip(requests, widths, strict=True)
            ]
        )

    def forget(self, row: int) -> None:
        self._indexes.pop(row, None)

    def _drafts(self, request: Request, width: int) -> list[int]:
        if width == 0:
            return []
        index = self._indexes.get(request.row)
        if index is None or index.owner != request.id:
            index = self._indexes[request.row] = _Index(request.id, self.ngram_min, self.ngram_max)
        index.extend(request.tokens)
        place = index.find(request.tokens)
        return [] if place is None else request.tokens[place : place + width]


@dataclass
class _Index:
    """For each n-gram, of every n in use, the place that followed its first occurrence.

    Example: n = 2, tokens 4 5 6 4 5: {(4, 5): 2, (5, 6): 3, (6, 4): 4}; the last two, 4 5, were followed by place 2,
    token 6.
    """

    owner: str
    ngram_min: int
    ngram_max: int
    known: int = 0
    followers: dict[tuple[int, ...], int] = field(default_factory=dict)

    def extend(self, tokens: list[int]) -> None:
        """Take in the n-grams that a token now follows, once each: a step costs what it adds, not what came before."""
        for place in range(self.known, len(tokens)):
            for n in range(self.ngram_min, min(self.ngram_max, place) + 1):
                self.followers.setdefault(tuple(tokens[place - n : place]), place)
        self.known = len(tokens)

    def find(self, tokens: list[int]) -> int | None:
        """The place after the first occurrence of the longest n-gram that ends the text and occurs earlier in it."""
        for n in range(min(self.ngram_max, len(tokens)), self.ngram_min - 1, -1):
            place = self.followers.get(tuple(tokens[-n:]))
            if place is not None:
                return place
        return None
