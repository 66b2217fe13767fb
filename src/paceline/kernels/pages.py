"""Memory in large pages, for what every pass reads from end to end: the processor looks up each page that it reads, and
fetches ahead only within one. With pages of 4 KiB a pass of the bundled model goes through 5000 of them.

Linux gives large pages to memory that asks for them (madvise, MADV_HUGEPAGE); elsewhere this is plain memory.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

LARGE = 2 << 20  # bytes of a large page
CHUNK = 16 << 20  # bytes taken at a time, for tensors smaller than that
LINE = 64  # bytes


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As `torch.zeros` on the CPU. Raises MemoryError when there is not that much."""
    size = prod(shape) * dtype.itemsize
    return _memory(size)[:size].view(dtype).view(shape)


class Pages:
    """Tensors side by side, in the order in which they come."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy to read from; the tensor itself where the CPU does not read it as it lies."""
        if not tensor.is_cpu or tensor.is_mkldnn:
            return tensor
        size = -(-tensor.nbytes // LINE) * LINE
        if size > len(self._free):
            self._free = _memory(max(size, CHUNK))
        room, self._free = self._free[: tensor.nbytes], self._free[size:]
        return room.view(tensor.dtype).view(tensor.shape).copy_(tensor)


class Rooms:
    """For layers, and beside it for attention."""

    def __init__(self) -> None:
        self.layers, self.scratch = Room(), Room()


class Room:
    """Memory to work in, kept from one call to the next: what the heap gives back to the system after each of them must
    be taken anew, page by page."""

    def __init__(self) -> None:
        self._bytes, self._size, self._where = torch.empty(0, dtype=torch.uint8), 0, 0

    def of(self, size: int) -> int:
        """Where at least so many bytes lie, with anything in them; the next call has the same ones."""
        if size > self._size:
            self._bytes = _memory(max(size, 2 * self._size))
            self._size, self._where = self._bytes.numel(), self._bytes.data_ptr()
        return self._where


def _memory(size: int) -> Tensor:
    """At least `size` bytes, all 0, from the begin of a large page on; memory is taken when it is written to."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8)
    try:
        held = mmap.mmap(-1, size + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        raise MemoryError from None
    with suppress(OSError):  # a kernel without them
        held.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(held, dtype=torch.uint8)
    return whole[-whole.data_ptr() % LARGE :]
