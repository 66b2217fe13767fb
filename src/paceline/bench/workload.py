"""From prompts to requests of the lengths that are asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from paceline.bench.datasets import RANDOM, Prompt, read_dataset
from paceline.bench.runs import Job
from paceline.errors import UserError
from paceline.request import SamplingParams
from paceline.tokenizer import Tokenizer

RANDOM_LEN = 128  # of random prompts, unless told


@dataclass(frozen=True)
class Workload:
    """What is asked of every arm. input_len None: prompts as long as they are."""

    dataset: str
    params: SamplingParams
    seed: int
    input_len: int | None = None
    source: str | None = None


def make_jobs(work: Workload, count: int, tokenizer: Tokenizer, context: int) -> list[Job]:
    """`count` requests; request i has seed `work.seed` + i. Where prompts are fewer they come again, with other seeds.

    Raises `UserError` for a dataset that cannot be read, and for lengths beyond the context."""
    _check_lengths(work.input_len or 1, work.params.max_tokens, context)  # before prompts of that length are made
    prompts = _random(work, count, tokenizer) if work.dataset == RANDOM else _encoded(work, count, tokenizer)
    _check_lengths(max(len(ids) for _, ids in prompts), work.params.max_tokens, context)
    return [
        Job(ids, replace(work.params, seed=work.seed + i), prompt.name, prompt.source)
        for i, (prompt, ids) in enumerate(prompts[i % len(prompts)] for i in range(count))
    ]


def _check_lengths(prompt: int, answer: int, context: int) -> None:
    if prompt + answer > context:
        raise UserError(
            f"The longest request has {prompt} tokens of prompt and {answer} of answer, but the context holds "
            f"{context}: lower --input-len or --output-len."
        )


def _random(work: Workload, count: int, tokenizer: Tokenizer) -> list[tuple[Prompt, list[int]]]:
    """Ids of ordinary tokens, each as likely as the others."""
    rng = random.Random(work.seed)
    ordinary = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]
    length = RANDOM_LEN if work.input_len is None else work.input_len
    return [(Prompt("", f"{RANDOM}/{i}", RANDOM), rng.choices(ordinary, k=length)) for i in range(count)]


def _encoded(work: Workload, count: int, tokenizer: Tokenizer) -> list[tuple[Prompt, list[int]]]:
    prompts = read_dataset(work.dataset, count, work.source)
    ids = [encode(prompt, tokenizer) for prompt in prompts]
    return list(zip(prompts, ids if work.input_len is None else fitted(ids, work.input_len), strict=True))


def encode(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """A chat through the tokenizer's template, or, where there is none, its messages as plain text."""
    if isinstance(prompt.content, str):
        return tokenizer.encode(prompt.content)
    if tokenizer.has_chat_template:
        return tokenizer.apply_chat_template(prompt.content)
    return tokenizer.encode("\n".join(message["content"] for message in prompt.content))


def fitted(prompts: Sequence[list[int]], length: int) -> list[list[int]]:
    """Each prompt with exactly `length` ids: the last ones of a longer one; before a shorter one stand the ends of the
    prompts that come before it in the list (behind the first stands the last one).

    Example: fitted([[1, 2], [3, 4, 5]], 4) = [[4, 5, 1, 2], [2, 3, 4, 5]]."""
    found = []
    for index, prompt in enumerate(prompts):
        text, before = prompt[-length:], index
        while len(text) < length:
            before = (before - 1) % len(prompts)
            text = [*prompts[before], *text][-length:]
        found.append(text)
    return found
