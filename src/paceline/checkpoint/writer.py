"""A checkpoint to disk, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from paceline.checkpoint.appearing import appearing
from paceline.checkpoint.reader import INDEX, SINGLE

SHARD_BYTES = 5_000_000_000


def write_checkpoint(
    directory: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    shard_bytes: int = SHARD_BYTES,
    extra_files: Mapping[str, bytes | str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a Hugging Face directory: config.json, safetensors (with an index when there are several), `extra_files`.

    Tensors may be views, and may share memory; only one shard is copied at a time. The directory appears complete or
    not at all. Raises UserError when it exists and `overwrite` is False, or when what exists is no checkpoint."""
    with appearing(Path(directory), overwrite) as draft:
        _write_tensors(draft, tensors, shard_bytes)
        (draft / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
        for name, content in (extra_files or {}).items():
            assert Path(name).name == name, f"{name!r} is not a plain file name"
            (draft / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(directory)


def _write_tensors(directory: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    shards = list(_shards(tensors, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # Clones: safetensors refuses tensors that share memory, and views of packed parameters do.
        shard = {name: tensors[name].detach().cpu().clone().contiguous() for name in names}
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(map(_bytes, tensors.values()))}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> Iterator[list[str]]:
    """Names in their order, cut before a shard would exceed `shard_bytes` (a larger tensor gets a shard of its own)."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + _bytes(tensor) > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes(tensor)
    yield names


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
