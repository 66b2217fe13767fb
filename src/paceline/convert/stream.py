"""Tensors from file to file in pieces: as they are stored, or as bfloat16. Never a whole tensor in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from paceline.checkpoint.dequant import dequantise
from paceline.checkpoint.reader import AGAIN, DTYPES, TensorInfo
from paceline.errors import UserError
from paceline.formats import BLOCK, INT8

PIECE = 1 << 20  # bytes read at a time: as much as stays in a cache while it is converted, hashed and written


def read_tensor(info: TensorInfo) -> Tensor:
    """All of it, as it is stored. For what is small."""
    tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
    data, end = tensor.view(-1).view(torch.uint8).numpy().data, 0
    for piece in raw_pieces(info):
        start, end = end, end + len(piece)
        data[start:end] = piece
    return tensor


def raw_pieces(info: TensorInfo, piece_bytes: int = PIECE) -> Iterator[memoryview]:
    """The stored bytes in order, each piece in memory of its own; all but the last have `piece_bytes`.

    Raises UserError when the file has become too short."""
    with info.file.open("rb", buffering=0) as file:
        file.seek(info.start)
        for left in range(info.size, 0, -piece_bytes):
            piece = memoryview(bytearray(min(left, piece_bytes)))
            got = 0
            while got < len(piece):
                count = file.readinto(piece[got:])
                if not count:
                    raise UserError(f"{info.file} is truncated: {AGAIN}")
                got += count
            yield piece


def bfloat16_pieces(info: TensorInfo, scale: TensorInfo | None) -> Iterator[memoryview]:
    """The bytes of the tensor as bfloat16, FP8 or INT8 codes times their scales in float32, and rounded once: exactly
    as `read_weight(...).to(bfloat16)` of the whole. Pieces are whole rows of blocks."""
    scales = None if scale is None else read_tensor(scale)
    multiply, rows_of_one = (INT8.dequantise, 1) if info.dtype == "I8" else (dequantise, BLOCK)
    columns = max(1, prod(info.shape[1:]))
    row_bytes = columns * DTYPES[info.dtype].itemsize
    rows = max(1, PIECE // row_bytes // BLOCK) * BLOCK
    first = 0  # row of scales
    for piece in raw_pieces(info, rows * row_bytes):
        part = torch.frombuffer(piece, dtype=DTYPES[info.dtype]).view(-1, columns)
        if scales is not None:
            after = first + -(-len(part) // rows_of_one)
            first, part = after, multiply(part, scales[first:after].float())
        yield part.to(torch.bfloat16).view(-1).view(torch.uint8).numpy().data


def pieces(info: TensorInfo, scale: TensorInfo | None, dtype: str) -> Iterator[memoryview]:
    """The bytes of the tensor as `dtype`: as stored, or bfloat16 (the format's word BF16)."""
    if info.dtype == dtype:
        return raw_pieces(info)
    assert dtype == "BF16"
    return bfloat16_pieces(info, scale)


def forget(file: Path) -> None:
    """Waits until a file is on its disk, and drops what the system keeps of it in memory, where it can be told to: the
    next read is from the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
