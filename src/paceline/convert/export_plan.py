"""What an export of MTP modules will write: every tensor with its name, type, size, and where its bytes come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from paceline.checkpoint.layouts import FILES, layout_config, layout_name
from paceline.checkpoint.reader import DTYPES, TensorInfo
from paceline.config import ModelConfig
from paceline.convert.mtp_source import Part, Stored, find_mtp
from paceline.convert.travelling import travelling
from paceline.errors import UserError
from paceline.garbage import uncollected

# What the published tools do: xLLM's export is bfloat16 with embedding and head, SGLang's is as stored without them.
DEFAULTS = {"xllm": ("bfloat16", "keep"), "sglang": ("keep", "drop"), "original": ("keep", "keep")}
DTYPE_CHOICES, SHARED_CHOICES = ("keep", "bfloat16"), ("keep", "drop")


@dataclass(frozen=True)
class Copy:
    """One tensor of the export. scale: the scales to multiply in. dtype: the format's word for what is written."""

    name: str
    source: str
    info: TensorInfo
    scale: TensorInfo | None
    dtype: str

    @property
    def size(self) -> int:
        """Bytes written."""
        return prod(self.info.shape) * DTYPES[self.dtype].itemsize

    def place(self) -> tuple[str, int]:
        """Where it lies: who reads in this order reads each file from front to back."""
        return self.info.file.name, self.info.start

    @property
    def bytes_read(self) -> int:
        return self.info.size + (0 if self.scale is None else self.scale.size)


@dataclass(frozen=True)
class ExportPlan:
    """An export before it is made. copies: the tensors, in the order of the file they will be in. travelling: tokenizer
    and generation settings, the only files of the source that go along."""

    source: Path
    config: ModelConfig
    layout: str
    dtype: str
    shared: str
    copies: tuple[Copy, ...]
    travelling: tuple[Path, ...]

    @property
    def file(self) -> str:
        return FILES[self.layout]

    @property
    def total_size(self) -> int:
        """Bytes of all tensors, as the index tells it."""
        return sum(copy.size for copy in self.copies)

    @property
    def bytes_read(self) -> int:
        return sum(copy.bytes_read for copy in self.copies)

    @property
    def draft_config(self) -> dict[str, Any]:
        """config.json of the export: it speaks of quantised weights only if there are some."""
        quantised = any(DTYPES[copy.dtype].itemsize == 1 for copy in self.copies)
        plain = self.dtype == "bfloat16" or (bool(self.config.raw.get("quantization_config")) and not quantised)
        return layout_config(self.layout, self.config, self.config.num_nextn_predict_layers, dequantised=plain)


def plan_export(
    source: str | Path, layout: str = "xllm", dtype: str | None = None, shared: str | None = None
) -> ExportPlan:
    """The plan for the MTP modules of the full checkpoint in `source`; nothing is written, only headers are read.

    dtype, shared: None is what the layout's own tool does (`DEFAULTS`). Raises UserError for an unknown choice, a
    layout that cannot hold the family, and a checkpoint that `find_mtp` refuses."""
    _check_choice("layout", layout, tuple(DEFAULTS))
    dtype = dtype or DEFAULTS[layout][0]
    shared = shared or DEFAULTS[layout][1]
    _check_choice("dtype", dtype, DTYPE_CHOICES)
    _check_choice("shared", shared, SHARED_CHOICES)
    source = Path(source)
    config = ModelConfig.from_dir(source)
    with uncollected():
        found = find_mtp(source, config, shared=shared == "keep")
    copies = [copy for part, stored in found.items() for copy in _copies(part, stored, layout, dtype, config)]
    copies.sort(key=lambda copy: (-DTYPES[copy.dtype].itemsize, copy.place()))  # wide types first: all are aligned
    plan = ExportPlan(source, config, layout, dtype, shared, tuple(copies), tuple(travelling(source)))
    assert plan.draft_config  # raises for a family that the layout does not know
    return plan


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} {value!r} is not known: choose among {', '.join(choices)}.")


def _copies(part: Part, stored: Stored, layout: str, dtype: str, config: ModelConfig) -> Iterator[Copy]:
    """A part as it is written: itself and its scales, or one bfloat16 tensor; what is computed in float32 stays."""
    depth, word = part
    name = layout_name(layout, depth, word, config)
    if dtype == "bfloat16" and not (stored.fixed and stored.scale is None):
        yield Copy(name, stored.name, stored.info, stored.scale, "BF16")
        return
    yield Copy(name, stored.name, stored.info, None, stored.info.dtype)
    if stored.scale is not None:
        name = layout_name(layout, depth, word + stored.suffix, config)
        yield Copy(name, stored.name + stored.suffix, stored.scale, None, stored.scale.dtype)
