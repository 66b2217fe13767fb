"""Grammars over the tiny tokenizer, one of each form, and walks through them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np

from conftest import tiny_tokenizer
from paceline import StructuredOutputsParams
from paceline.grammar import Grammar, Grammars, forbidden
from paceline.tokenizer import Tokenizer

VOCAB, EOS = 320, 1
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "words": {"type": "array", "items": {"enum": ["one", "two"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "words"],
    "additionalProperties": False,
}
CHARACTER = r'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))'
SHAPE = rf'\{{"name":"{CHARACTER}{{0,6}}","age":\d{{1,2}},"words":\["(?:one|two)"(?:,"(?:one|two)")?\]\}}'
FORMS: list[tuple[StructuredOutputsParams, str]] = [
    (StructuredOutputsParams(json=SCHEMA), SHAPE),
    (StructuredOutputsParams(regex=r"[a-z]{2,5} (one|two)? ?[0-9]{3}"), r"[a-z]{2,5} (one|two)? ?[0-9]{3}"),
    (StructuredOutputsParams(choice=["the quick fox", "the lazy dog", "the"]), "the( quick fox| lazy dog)?"),
    (StructuredOutputsParams(grammar='root ::= "one" (" two" | " three"){1,4} "."'), r"one( two| three){1,4}\."),
    (StructuredOutputsParams(grammar='start: "a" (" b" | " c")* /[0-9]{2}/'), r"a( b| c)*[0-9]{2}"),
]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer())


@cache
def grammars() -> Grammars:
    return Grammars(tokenizer(), VOCAB, [EOS])


def start(**asked: Any) -> Grammar:
    return grammars().start(StructuredOutputsParams(**asked))


def allowed(grammar: Grammar, path: list[int]) -> set[int]:
    return set(np.flatnonzero(~forbidden([grammar.mask(path)], VOCAB)[0]).tolist())


def walk(grammar: Grammar, choices: list[int]) -> list[int]:
    """The path on which each choice picks among the allowed tokens, until the end of a text."""
    path: list[int] = []
    for choice in choices:
        found = sorted(allowed(grammar, path) - {EOS})
        if not found:
            break
        path.append(found[choice % len(found)])
    return path


def counted(grammar: Grammar) -> Counter[str]:
    """Counts what is asked of its matcher from now on, by the method's name."""
    calls, matcher = Counter[str](), grammar._matcher

    class Counting:
        def __getattr__(self, name: str) -> Any:
            calls[name] += 1
            return getattr(matcher, name)

    grammar._matcher = Counting()  # type: ignore[assignment]
    return calls
