"""A checkpoint into a model's weights, every tensor accounted for: none left over, none missing, none misshapen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from paceline.checkpoint.dequant import SCALE, read_weight
from paceline.checkpoint.reader import Checkpoint
from paceline.errors import UserError

Names = Callable[[str], bool]
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
    for name, view in views.items():
        view.copy_(read_weight(checkpoint, name))


def account(
    views: Mapping[str, Tensor], checkpoint: Checkpoint, *, ignored: Names = nothing, mend: str = COMPLETE
) -> None:
    """Compare names and shapes from the headers alone. Raises UserError as `load_weights` does."""
    _refuse([name for name in views if name not in checkpoint], checkpoint, "is missing", mend)
    left_over = [name for name in checkpoint if _owner(name) not in views and not ignored(name)]
    _refuse(left_over, checkpoint, "has no place in this model", COMPLETE)
    for name, view in views.items():
        if name + SCALE in checkpoint and not checkpoint[name].dtype.startswith("F8"):
            raise UserError(f"{name} in {checkpoint.directory} is not FP8, yet has {name + SCALE}: {COMPLETE}.")
        if checkpoint[name].shape != tuple(view.shape):
            raise UserError(
                f"Tensor {name} has shape {list(checkpoint[name].shape)} in {checkpoint.directory}, "
                f"but config.json makes it {list(view.shape)}: use the config.json these weights were saved with."
            )


def _owner(name: str) -> str:
    """A scale belongs to its weight."""
    return name.removesuffix(SCALE)


def _refuse(names: list[str], checkpoint: Checkpoint, what: str, mend: str) -> None:
    if names:
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise UserError(f"Tensor {names[0]}{others} {what} in {checkpoint.directory}: {mend}.")
