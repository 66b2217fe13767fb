"""A safetensors file written front to back: its head is known from names and shapes, so that no tensor has to wait."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One tensor of the file. dtype: the format's own word (BF16, F8_E4M3...); size: bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


def header(entries: Iterable[Entry]) -> bytes:
    """The head of the file: 8 bytes of length, then JSON, padded so that data begin at a multiple of 8. The tensors'
    bytes follow in this order."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, size in entries:
        start, end = end, end + size
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_all(write: Callable[[memoryview], int | None], data: memoryview) -> None:
    """All of `data`, however little an unbuffered file takes at a time."""
    while data:
        data = data[write(data) or 0 :]
