"""Tensors in pieces: the same bytes as whole, whatever the size of a piece."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from paceline.checkpoint.dequant import dequantise
from paceline.checkpoint.reader import SINGLE, Checkpoint, TensorInfo
from paceline.convert import stream
from paceline.errors import UserError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]


def stored(tensors: dict[str, Tensor], parent: str) -> Checkpoint:
    save_file(tensors, Path(parent) / SINGLE)
    return Checkpoint(parent)


def plain_product(weight: Tensor, scale: Tensor) -> Tensor:
    """Number by number, as the format is described."""
    spread = scale.repeat_interleave(128, 0)[: weight.shape[0]].repeat_interleave(128, 1)[:, : weight.shape[1]]
    return weight.to(torch.float32) * spread


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=3), st.sampled_from(DTYPES), st.integers(1, 70))
def test_stored_bytes_come_as_they_are(shape: list[int], dtype: torch.dtype, piece: int) -> None:
    tensor = torch.randn(shape).to(dtype)
    with tempfile.TemporaryDirectory() as parent:
        checkpoint = stored({"before": torch.ones(3), "x": tensor, "y": torch.ones(5)}, parent)
        found = b"".join(map(bytes, stream.raw_pieces(checkpoint["x"], piece)))
        assert found == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        read = stream.read_tensor(checkpoint["x"])
        assert read.shape == tensor.shape and read.reshape(-1).view(torch.uint8).numpy().tobytes() == found


def scales_for(weight: Tensor) -> Tensor | None:
    rows, columns = weight.shape
    if weight.dtype == torch.int8:
        return torch.rand(rows, 1) + 0.01
    return torch.rand(math.ceil(rows / 128), math.ceil(columns / 128)) + 0.01 if weight.itemsize == 1 else None


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 300),
    st.sampled_from([*DTYPES, torch.int8]),
    st.sampled_from([1, 40_000, 1 << 20]),
)
def test_bfloat16_is_the_whole_tensor_rounded_once(rows: int, columns: int, dtype: torch.dtype, piece: int) -> None:
    weight = torch.randn(rows, columns).mul(40).to(dtype)
    scale = scales_for(weight)
    product = (lambda w, s: w.float() * s) if dtype == torch.int8 else plain_product
    expected = weight if scale is None else product(weight, scale)
    tensors = {"x": weight} if scale is None else {"x": weight, "scale": scale}
    with tempfile.TemporaryDirectory() as parent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PIECE", piece)
        checkpoint = stored(tensors, parent)
        parts = stream.pieces(checkpoint["x"], checkpoint.get("scale"), "BF16")
        found = torch.frombuffer(bytearray(b"".join(map(bytes, parts))), dtype=torch.bfloat16).view(rows, columns)
    assert torch.equal(found, expected.to(torch.bfloat16))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (7,), (), (2, 3, 5)])
def test_odd_shapes_become_bfloat16(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    checkpoint = stored({"x": tensor}, str(tmp_path))
    found = b"".join(map(bytes, stream.pieces(checkpoint["x"], None, "BF16")))
    assert found == tensor.to(torch.bfloat16).reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("scale", [1.0, 3.1e-4, 2.0**-140, 7e30])
def test_every_fp8_number_is_exact(scale: float) -> None:
    """All 256 of them: both zeros, those below the normal range, and NaN."""
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        weight = torch.arange(256, dtype=torch.uint8).view(dtype).view(16, 16)
        found, expected = dequantise(weight, torch.full((1, 1), scale)), weight.to(torch.float32) * scale
        assert torch.equal(found.isnan(), expected.isnan())
        sure = ~expected.isnan()
        assert torch.equal(found.view(torch.int32)[sure], expected.view(torch.int32)[sure])


def test_dequantising_leaves_its_input_alone() -> None:
    weight = torch.ones(130, 3)
    dequantise(weight, torch.full((2, 1), 2.0))
    assert torch.equal(weight, torch.ones(130, 3))


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(10))
    with pytest.raises(UserError, match="truncated"):
        list(stream.raw_pieces(TensorInfo(tmp_path / "x", "F32", (4,), 0, 16)))
