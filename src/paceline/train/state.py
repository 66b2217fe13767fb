"""The state of a run on disk: tensors in safetensors, numbers in JSON, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from paceline.errors import UserError


def save_state(directory: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Replaces `directory`. A crash at any moment leaves the old state or the new one (perhaps under its other
    name)."""
    new, old = directory.with_name(directory.name + ".new"), directory.with_name(directory.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(new / "state.safetensors"))
    (new / "state.json").write_text(json.dumps(dict(numbers)) + "\n", encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def check_state(directory: Path, wanted: bool) -> None:
    """Raises UserError when a run is to go on (`wanted`) that is not there, or is to begin where one is."""
    there = _found(directory) is not None
    if wanted and not there:
        raise UserError(f"{directory.parent} has no checkpoint to resume; start it without --resume.")
    if there and not wanted:
        raise UserError(
            f"{directory.parent} holds a run already: add --resume to go on with it, or name another --out."
        )


@torch.no_grad()
def load_state(directory: Path, into: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fills the tensors of `into` and returns the numbers. Raises UserError when the state is not of the same model."""
    check_state(directory, wanted=True)
    found = _found(directory) or directory
    try:
        tensors = load_file(str(found / "state.safetensors"))
        numbers: dict[str, Any] = json.loads((found / "state.json").read_bytes())
    except (OSError, ValueError, SafetensorError) as problem:
        raise UserError(f"The checkpoint {found} cannot be read ({problem}); start again in another --out.") from None
    shapes, wanted = ({name: t.shape for name, t in d.items()} for d in (tensors, into))
    if shapes != wanted:
        name = sorted(set(shapes.items()) ^ set(wanted.items()))[0][0]
        raise UserError(
            f"The checkpoint {found} is of another model or optimizer ({name} differs); use the same options."
        )
    for name, tensor in into.items():
        tensor.copy_(tensors[name])
    return numbers


def _found(directory: Path) -> Path | None:
    candidates = (directory, directory.with_name(directory.name + ".old"))
    return next((path for path in candidates if (path / "state.json").is_file()), None)
