"""Log-probabilities in OpenAI's two shapes: a list of objects for chat, parallel lists for completions."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from paceline.tokenizer import HELD_BACK, Tokenizer

LEAST = -9999.0  # JSON has no minus infinity; vLLM writes this


def chat_logprobs(tokens: list[int], rows: list[dict[int, float]], top: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """`rows[i]`: of token i and of the `top` likeliest in its place, token to log-probability."""
    content = [
        _entry(token, row[token], tokenizer)
        | {"top_logprobs": [_entry(other, value, tokenizer) for other, value in _likeliest(row, top)]}
        for token, row in zip(tokens, rows, strict=True)
    ]
    return {"content": content, "refusal": None}


def _entry(token: int, value: float, tokenizer: Tokenizer) -> dict[str, Any]:
    """`bytes` is null for a token that is only part of a character."""
    text = tokenizer.token(token)
    return {
        "token": text,
        "logprob": max(value, LEAST),
        "bytes": None if HELD_BACK in text else list(text.encode()),
    }


def completion_logprobs(
    tokens: list[int], rows: Sequence[dict[int, float] | None], top: int, tokenizer: Tokenizer, offset: int = 0
) -> tuple[dict[str, Any], int]:
    """OpenAI's parallel lists, and where the next token's text begins. offset: where that of the first one does.

    A row None is that of a prompt's first token, which follows nothing. A special token is no part of the text."""
    texts = [tokenizer.token(token) for token in tokens]
    offsets = [offset]
    for token, text in zip(tokens, texts, strict=True):
        offsets.append(offsets[-1] + (0 if token in tokenizer.special_ids else len(text)))
    pairs = list(zip(tokens, rows, strict=True))
    return {
        "tokens": texts,
        "token_logprobs": [None if row is None else max(row[token], LEAST) for token, row in pairs],
        "top_logprobs": [None if row is None else _by_text(token, row, top, tokenizer) for token, row in pairs],
        "text_offset": offsets[:-1],
    }, offsets[-1]


def prompt_rows(
    prompt: list[int], rows: list[dict[int, float]], top: int, tokenizer: Tokenizer
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's `prompt_logprobs`: for each token of the prompt but the first, which follows nothing, the likeliest tokens
    in its place and itself, by id. The rank of one that is not among the likeliest is not known."""
    found: list[dict[str, dict[str, Any]] | None] = [None]
    for token, row in zip(prompt[1:], rows, strict=True):
        best = dict(_likeliest(row, top))
        ranks = {other: rank for rank, other in enumerate(best, 1)}
        told = best | {token: row[token]}
        found.append(
            {
                str(other): {
                    "logprob": max(value, LEAST),
                    "rank": ranks.get(other),
                    "decoded_token": tokenizer.token(other),
                }
                for other, value in told.items()
            }
        )
    return found


def _by_text(token: int, row: dict[int, float], top: int, tokenizer: Tokenizer) -> dict[str, float]:
    """The likeliest tokens and the one that came. Of tokens with the same text that one counts, else the likeliest."""
    best = {tokenizer.token(other): max(value, LEAST) for other, value in reversed(_likeliest(row, top))}
    return best | {tokenizer.token(token): max(row[token], LEAST)}


def _likeliest(row: dict[int, float], top: int) -> list[tuple[int, float]]:
    best = sorted(row.items(), key=lambda item: (-item[1], item[0]))
    return [(token, value) for token, value in best if value > -inf][:top]
