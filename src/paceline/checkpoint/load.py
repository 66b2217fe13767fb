"""A checkpoint into a model's weights, every tensor accounted for: none left over, none missing, none misshapen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from paceline.checkpoint.dequant import read_as
from paceline.checkpoint.reader import Checkpoint
from paceline.errors import UserError
from paceline.formats import FORMATS, format_of, owner

Names = Callable[[str], bool]
CODES = {"int8": "I8", "fp8": "F8"}  # how the file format calls their types, or begins to
COMPLETE = "use the complete checkpoint, of the model that config.json describes"


def nothing(_: str) -> bool:
    return False


@torch.no_grad()
def load_weights(
    views: Mapping[str, Tensor], checkpoint: Checkpoint, *, ignored: Names = nothing, mend: str = COMPLETE
) -> None:
    """Copy the checkpoint into `views` (name -> view into a parameter), converting to the view's dtype.

    ignored: names in the checkpoint that another model takes. mend: what to tell the user when a tensor is missing.
    All names and shapes are compared before the first copy.
    Raises UserError that names the first missing, unexpected or misshapen tensor, and how many there are."""
    account(views, checkpoint, ignored=ignored, mend=mend)
    for name in _whole(views):
        numbers, scale = read_as(checkpoint, name, views[name].dtype)
        views[name].copy_(numbers)
        if scale is not None:
            views[_scales(name, views[name])].copy_(scale)


def account(
    views: Mapping[str, Tensor], checkpoint: Checkpoint, *, ignored: Names = nothing, mend: str = COMPLETE
) -> None:
    """Compare names and shapes from the headers alone. Raises UserError as `load_weights` does."""
    whole = _whole(views)
    _refuse([name for name in whole if name not in checkpoint], checkpoint, "is missing", mend)
    left_over = [name for name in checkpoint if owner(name) not in views and not ignored(name)]
    _refuse(left_over, checkpoint, "has no place in this model", COMPLETE)
    for name in whole:
        _check_scales(checkpoint, name)
        view = views[name]
        if checkpoint[name].shape != tuple(view.shape):
            raise UserError(
                f"Tensor {name} has shape {list(checkpoint[name].shape)} in {checkpoint.directory}, "
                f"but config.json makes it {list(view.shape)}: use the config.json these weights were saved with."
            )


def _whole(views: Mapping[str, Tensor]) -> list[str]:
    """The names without those of scales, which come with their weight's codes, be they stored or made."""
    scales = {_scales(name, view) for name, view in views.items()}
    return [name for name in views if name not in scales]


def _scales(name: str, view: Tensor) -> str:
    form = format_of(view.dtype)
    return "" if form is None else name + form.suffix


def _check_scales(checkpoint: Checkpoint, name: str) -> None:
    for form in FORMATS.values():
        if name + form.suffix in checkpoint and not checkpoint[name].dtype.startswith(CODES[form.name]):
            kind, scales = form.name.upper(), name + form.suffix
            raise UserError(f"{name} in {checkpoint.directory} is not {kind}, yet has {scales}: {COMPLETE}.")


def _refuse(names: list[str], checkpoint: Checkpoint, what: str, mend: str) -> None:
    if names:
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise UserError(f"Tensor {names[0]}{others} {what} in {checkpoint.directory}: {mend}.")
