"""A safetensors file written piece by piece: its head is known from names and shapes, so that no tensor has to wait."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterable
from io import FileIO
from typing import Any, NamedTuple

STRETCH = 16 << 20  # bytes
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


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


class Writing:
    """Bytes into a new file, which go on to its disk while the next ones are made: who waits for the disk at the end
    waits for the last stretch. `file` is unbuffered."""

    def __init__(self, file: FileIO) -> None:
        self._file, self._waiting = file, 0

    def write(self, data: memoryview) -> None:
        """Where the file stands."""
        write_all(self._file.write, data)
        self._waiting += len(data)
        if self._waiting >= STRETCH:
            begin_writing(self._file.fileno())
            self._waiting = 0


def begin_writing(descriptor: int) -> bool:
    """All that a file was given begins to go to its disk, and nobody waits. False where the system has no such call, or
    not for this file: then it goes when the system likes."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    everything = ctypes.c_int64(0)
    return call is not None and call(descriptor, everything, everything, _SYNC_FILE_RANGE_WRITE) == 0
