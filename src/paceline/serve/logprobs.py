"""Log-probabilities in OpenAI's two shapes: a list of objects for chat, parallel lists for completions."""

from __future__ import annotations

from math import inf
from typing import Any

from paceline.tokenizer import HELD_BACK, Tokenizer

LEAST = -9999.0  # JSON has no minus infinity; vLLM writes this

Rows = list[dict[int, float]]


def chat_logprobs(tokens: list[int], rows: Rows, top: int, tokenizer: Tokenizer) -> dict[str, Any]:
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
    tokens: list[int], rows: Rows, top: int, tokenizer: Tokenizer, offset: int = 0
) -> tuple[dict[str, Any], int]:
    """OpenAI's parallel lists, and where the next token's text begins. offset: where that of the first one does."""
    texts = [tokenizer.token(token) for token in tokens]
    offsets = [offset]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    likeliest = [{tokenizer.token(t): max(v, LEAST) for t, v in reversed(_likeliest(row, top))} for row in rows]
    values = [max(row[token], LEAST) for token, row in zip(tokens, rows, strict=True)]
    return {
        "tokens": texts,
        "token_logprobs": values,
        "top_logprobs": [{**best, text: value} for best, text, value in zip(likeliest, texts, values, strict=True)],
        "text_offset": offsets[:-1],
    }, offsets[-1]


def _likeliest(row: dict[int, float], top: int) -> list[tuple[int, float]]:
    best = sorted(row.items(), key=lambda item: (-item[1], item[0]))
    return [(token, value) for token, value in best if value > -inf][:top]
