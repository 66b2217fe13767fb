"""A checkpoint in int8 or FP8: file by file and tensor by tensor, whole or not at all.

What is quantised is what a model swaps when it is built in that format (`layers.quant`), MTP modules included: loading
the result gives what loading the source in that format gives, bit for bit. The files keep their names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.checkpoint.appearing import appearing, check_apart, check_target
from paceline.checkpoint.dequant import quantised, read_weight
from paceline.checkpoint.load import account
from paceline.checkpoint.map import not_of_target
from paceline.checkpoint.quantization import announce, stored_format
from paceline.checkpoint.reader import DTYPES, INDEX, Checkpoint, TensorInfo
from paceline.config import ModelConfig
from paceline.convert.rawfile import Entry, Writing, header
from paceline.convert.travelling import travelling
from paceline.errors import UserError
from paceline.formats import Format, format_of, owner
from paceline.garbage import uncollected
from paceline.layers.quant import quantise_modules
from paceline.models import build_model, build_mtp
from paceline.models.meta import laid_out

Advance = Callable[[int], None]  # told how many bytes of the source have been dealt with since the last call
WORDS = {torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3", torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True)
class Piece:
    """A tensor of the source, and what becomes of it: codes with scales (`form`), numbers in bfloat16 in the place of
    codes in another format (`plain`), or the same."""

    name: str
    info: TensorInfo
    form: Format | None
    plain: bool

    def entries(self) -> list[Entry]:
        shape = self.info.shape
        if self.form is not None:
            scale = self.form.stored_scale_shape(*shape)
            name = self.name + self.form.suffix
            return [
                Entry(self.name, WORDS[self.form.dtype], shape, prod(shape)),
                Entry(name, "F32", scale, 4 * prod(scale)),
            ]
        return [Entry(self.name, "BF16" if self.plain else self.info.dtype, shape, prod(shape) * self.itemsize)]

    @property
    def itemsize(self) -> int:
        return 2 if self.plain else DTYPES[self.info.dtype].itemsize

    def tensors(self, checkpoint: Checkpoint) -> tuple[Tensor, ...]:
        """In the order of `entries`."""
        if self.form is not None:
            return quantised(read_weight(checkpoint, self.name), self.form, self.name)
        return (read_weight(checkpoint, self.name).to(torch.bfloat16) if self.plain else checkpoint.tensor(self.name),)


@dataclass(frozen=True)
class QuantizePlan:
    """files: file name to what goes into it."""

    source: Path
    raw: Mapping[str, Any]
    form: Format
    files: Mapping[str, list[Piece]]

    @property
    def entries(self) -> list[Entry]:
        return [entry for pieces in self.files.values() for piece in pieces for entry in piece.entries()]

    @property
    def bytes_read(self) -> int:
        return sum(piece.info.size for pieces in self.files.values() for piece in pieces)

    @property
    def bytes_written(self) -> int:
        return sum(entry.size for entry in self.entries)

    def config(self) -> dict[str, Any]:
        """config.json of the result: it names every module whose matrix stays as it was."""
        pieces = [piece for pieces in self.files.values() for piece in pieces]
        kept = [p.name for p in pieces if p.form is None and len(p.info.shape) == 2 and p.name.endswith(".weight")]
        modules = sorted(name.removesuffix(".weight") for name in kept if not name.endswith("embed_tokens.weight"))
        return dict(self.raw) | {"quantization_config": announce(self.form, modules)}


@uncollected()
def plan_quantize(source: str | Path, form: Format) -> QuantizePlan:
    """Headers only. Raises UserError for a checkpoint that could not be loaded, or is in this format already."""
    config, checkpoint = ModelConfig.from_dir(source), Checkpoint(source)
    if stored_format(config.raw) is form:
        raise UserError(f"{source} is in {form.name} already: nothing is left to do.")
    forms = _forms(config, checkpoint, form)
    files: dict[str, list[Piece]] = defaultdict(list)
    for name, info in sorted(checkpoint.items(), key=lambda item: (item[1].file.name, item[1].start)):
        if owner(name) == name:
            coded = format_of(DTYPES.get(info.dtype, torch.bool)) is not None
            files[info.file.name].append(Piece(name, info, forms.get(name), plain=coded and forms.get(name) is None))
    return QuantizePlan(Path(source), config.raw, form, files)


def _forms(config: ModelConfig, checkpoint: Checkpoint, form: Format) -> dict[str, Format | None]:
    """Checkpoint name to the format that a model built in `form` keeps it in; the target is checked to be complete."""
    with laid_out(config.dtype):
        target = build_model(config)
        quantise_modules(target, form)
        mtp = build_mtp(config, target) if config.num_nextn_predict_layers else None
        if mtp is not None:
            quantise_modules(mtp, form)
    views = target.weights()
    account(views, checkpoint, ignored=lambda name: not_of_target(name, config))
    if mtp is not None:
        views |= mtp.weights() | mtp.shared_weights()
    return {name: format_of(view.dtype) for name, view in views.items()}


def quantize(
    plan: QuantizePlan, target: str | Path, *, overwrite: bool = False, advance: Advance = lambda _: None
) -> Path:
    """Writes what `plan` says, a tensor at a time. `advance` is told of plan.bytes_read bytes in all.

    An interrupted run leaves nothing. Raises UserError when `target` may not be replaced or cannot be written, or a
    tensor holds what no scale can hold."""
    target = Path(target)
    check_apart(plan.source, target)
    check_target(target, overwrite, "config.json")
    try:
        with appearing(target, overwrite) as draft:
            checkpoint = Checkpoint(plan.source)
            for file, pieces in plan.files.items():
                _write_file(draft / file, pieces, checkpoint, advance)
                checkpoint.release()
            _write_rest(draft, plan)
    except OSError as problem:
        raise UserError(f"{target} could not be written and is as it was ({problem}): mend that first.") from None
    return target


def _write_file(file: Path, pieces: list[Piece], checkpoint: Checkpoint, advance: Advance) -> None:
    with file.open("xb", buffering=0) as opened:
        out = Writing(opened)
        out.write(memoryview(header(entry for piece in pieces for entry in piece.entries())))
        for piece in pieces:
            for data in map(_bytes, piece.tensors(checkpoint)):
                out.write(data)
            advance(piece.info.size)
        os.fsync(opened.fileno())


def _bytes(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    return data


def _write_rest(directory: Path, plan: QuantizePlan) -> None:
    _write_json(directory / "config.json", plan.config())
    weight_map = {entry.name: file for file, pieces in plan.files.items() for entry in _entries(pieces)}
    if len(plan.files) > 1 or (plan.source / INDEX).is_file():
        _write_json(directory / INDEX, {"metadata": {"total_size": plan.bytes_written}, "weight_map": weight_map})
    for file in travelling(plan.source):
        shutil.copyfile(file, directory / file.name)


def _entries(pieces: list[Piece]) -> Iterator[Entry]:
    for piece in pieces:
        yield from piece.entries()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
