"""Examples as token ids, made once and kept in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from paceline.errors import UserError
from paceline.tokenizer import Tokenizer
from paceline.tokenizer_training import END_OF_TEXT, END_OF_TURN, ROLES, tokenizer_paths
from paceline.train.examples import Example, read_examples


@dataclass(frozen=True)
class Corpus:
    """Documents end to end: tokens [N] int32; answers [N] bool (text that the assistant, or a plain text's author,
    wrote); ends [docs] int64, the place after each document; sources [docs] int64 into `names`."""

    tokens: Tensor
    answers: Tensor
    ends: Tensor
    sources: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ends)


def load_corpus(files: list[Path], tokenizer_dir: Path, cache: Path) -> Corpus:
    """The corpus of `files`, from `cache` when that was made of the same files and tokenizer."""
    fingerprint = _fingerprint([*files, *tokenizer_paths(tokenizer_dir)])
    corpus = _read(cache, fingerprint)
    if corpus is None:
        corpus = encode_corpus(read_examples(files), Tokenizer.from_dir(tokenizer_dir))
        _write(corpus, cache, fingerprint)
    return corpus


def encode_corpus(examples: Iterator[Example], tokenizer: Tokenizer) -> Corpus:
    """Raises UserError when there are no examples, or the tokenizer lacks the special tokens of ours, which texts and
    conversations need and token ids do not."""
    marks: Marks | None = None
    parts: list[Tensor] = []
    given: dict[int, int] = {}  # documents of token ids: their number, and the length of the prompt
    sources: dict[str, int] = {}
    source_ids: list[int] = []
    for example in examples:
        if example.answer_ids:
            given[len(parts)] = len(example.prompt_ids)
            ids = [*example.prompt_ids, *example.answer_ids]
        else:
            marks = marks or Marks.of(tokenizer)
            ids = _encode(example, tokenizer, marks)
        parts.append(torch.tensor(ids, dtype=torch.int32))
        source_ids.append(sources.setdefault(example.source, len(sources)))
    if not parts:
        raise UserError("The training files hold no examples; give JSONL with text or messages on each line.")
    tokens = torch.cat(parts)
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    answers = answer_mask(tokens, ends, marks) if marks is not None else torch.zeros_like(tokens, dtype=torch.bool)
    for (number, prompt), end in zip(given.items(), ends[list(given)].tolist(), strict=True):
        answers[end - len(parts[number]) : end] = torch.arange(len(parts[number])) >= prompt
    return Corpus(tokens, answers, ends, torch.tensor(source_ids), tuple(sources))


@dataclass(frozen=True)
class Marks:
    """The ids of the tokens that structure a conversation."""

    end_of_text: int
    end_of_turn: int
    roles: Mapping[str, int]

    @staticmethod
    def of(tokenizer: Tokenizer) -> Marks:
        names = [END_OF_TEXT, END_OF_TURN, *ROLES.values()]
        ids = [tokenizer.token_id(name) for name in names]
        if None in ids or not tokenizer.has_chat_template:
            raise UserError(
                f"The tokenizer must have a chat template and the tokens {' '.join(names)}; train one here."
            )
        known = [i for i in ids if i is not None]
        return Marks(known[0], known[1], dict(zip(ROLES, known[2:], strict=True)))


def _encode(example: Example, tokenizer: Tokenizer, marks: Marks) -> list[int]:
    if example.text is not None:
        return [*tokenizer.encode(example.text, add_special_tokens=False), marks.end_of_text]
    return tokenizer.apply_chat_template(example.messages or [], add_generation_prompt=False)


def answer_mask(tokens: Tensor, ends: Tensor, marks: Marks) -> Tensor:
    """[N] bool: True inside an assistant's turn, its end token included and its opening mark not, and in plain texts.

    Example: <user> hi <end> <assistant> hello <end> gives 0 0 0 0 1 1. A token's state is set by the last mark before
    it."""
    state = torch.zeros(len(tokens), dtype=torch.int64)  # from the next token on 1: others write, 2: the assistant
    for role, mark in marks.roles.items():
        state[tokens == mark] = 2 if role == "assistant" else 1
    state[tokens == marks.end_of_turn] = 1
    before = torch.cat((torch.zeros(1, dtype=torch.int64), state[:-1]))
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), ends[:-1]))
    is_mark = torch.isin(tokens, torch.tensor(list(marks.roles.values()), dtype=tokens.dtype))
    before[starts] = torch.where(is_mark[starts], 1, 2)
    places = torch.arange(len(tokens)).masked_fill(before == 0, 0).cummax(0).values
    mask: Tensor = (before[places] == 2) & ~is_mark
    return mask


def _fingerprint(files: list[Path]) -> str:
    """Of names, sizes and contents."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.stem} {len(content)} ".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _read(cache: Path, fingerprint: str) -> Corpus | None:
    if not cache.is_file():
        return None
    try:
        with safe_open(str(cache), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            parts = {name: file.get_tensor(name) for name in ("tokens", "answers", "ends", "sources")}
    except SafetensorError:
        return None
    return Corpus(**parts, names=tuple(json.loads(metadata["names"])))


def _write(corpus: Corpus, cache: Path, fingerprint: str) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(corpus, name) for name in ("tokens", "answers", "ends", "sources")}
    partial = cache.with_suffix(".partial")
    save_file(tensors, str(partial), {"fingerprint": fingerprint, "names": json.dumps(corpus.names)})
    partial.replace(cache)
