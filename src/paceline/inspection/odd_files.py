"""What is odd about the files of a checkpoint and the fields of its config.json, one sentence each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paceline.checkpoint.reader import INDEX, MAX_HEADER, SINGLE
from paceline.inspection.facts import Facts

TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model"})
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_STRETCHED = ("yarn", "linear", "dynamic")  # rope types whose factor is the context's


def unread_files(facts: Facts) -> Iterator[str]:
    """Weights beside those that are read."""
    read = {info.file.name for info in facts.tensors.values()}
    loose = sorted(name for name in facts.files - read if name.endswith(".safetensors"))
    if loose:
        yield f"{_count(loose)} not named by the index, and not read: {loose[0]}."
    unsafe = sorted(name for name in facts.files if name.endswith(UNSAFE))
    if unsafe:
        yield f"{_count(unsafe)} no safetensors, and never opened: {unsafe[0]}."


def _count(names: list[str]) -> str:
    return "1 file is" if len(names) == 1 else f"{len(names)} files are"


def index_told(facts: Facts) -> Iterator[str]:
    """The index beside the files."""
    if INDEX not in facts.files:
        return
    metadata = facts.told
    if metadata is None:  # there is a model.safetensors, which is read without it
        index = read_json(facts.directory / INDEX)
        shards, metadata = index.get("weight_map"), index.get("metadata")
        if not (isinstance(shards, dict) and {SINGLE}.issuperset(map(str, shards.values()))):
            yield f"There is {SINGLE}, and an {INDEX} that names other files: only the first is read."
            return
    told = metadata.get("total_size") if isinstance(metadata, dict) else None
    there = facts.bytes_stored
    if told is None:
        yield f"{INDEX} does not tell total_size."
    elif told != there:
        yield f"{INDEX} tells a total_size of {told} bytes, but its tensors have {there}."


def dtype_told(facts: Facts) -> Iterator[str]:
    if not (facts.raw.get("dtype") or facts.raw.get("torch_dtype")):
        yield "config.json tells no dtype (torch_dtype): the model runs in float32 unless told another."


def text_files(facts: Facts) -> Iterator[str]:
    """What turns text to tokens and back; a draft has the target's."""
    if facts.is_draft:
        return
    if not facts.files & TOKENIZERS:
        yield "There is no tokenizer (tokenizer.json): prompts can only be token ids."
    settings = read_json(facts.directory / "tokenizer_config.json")
    if not settings.get("chat_template") and not facts.files & {"chat_template.jinja", "chat_template.json"}:
        yield "There is no chat template: prompts are texts to continue."
    generation = read_json(facts.directory / "generation_config.json")
    ends = (facts.raw.get("eos_token_id"), generation.get("eos_token_id"), settings.get("eos_token"))
    if all(end is None for end in ends):
        yield "Nothing names a token that ends a text (eos_token_id, eos_token): answers end when they are cut off."


def stretched_context(facts: Facts) -> Iterator[str]:
    """The factor of a rope scaling beside max_position_embeddings."""
    rope: dict[str, Any] = {}
    for field in ("rope_scaling", "rope_parameters"):
        given = facts.raw.get(field)
        rope |= given if isinstance(given, dict) else {}
    kind = rope.get("rope_type") or rope.get("type")
    sizes = (rope.get("factor"), rope.get("original_max_position_embeddings"), facts.raw.get("max_position_embeddings"))
    if kind not in _STRETCHED or not all(isinstance(size, int | float) and 0 < size < 1e12 for size in sizes):
        return
    factor, original, context = (float(size) for size in sizes if size is not None)
    if round(factor * original) != round(context):
        yield (
            f"rope scaling ({kind}) stretches {original:.0f} tokens by {factor:g} to {factor * original:.0f}, "
            f"but max_position_embeddings is {context:.0f}, which is the context."
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none, for what is told here is only a hint."""
    try:
        if path.stat().st_size > MAX_HEADER:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


FILE_CHECKS: tuple[Callable[[Facts], Iterator[str]], ...] = (
    unread_files,
    index_told,
    dtype_told,
    text_files,
    stretched_context,
)
