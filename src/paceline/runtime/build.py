"""From a directory to a model ready to run: lay out, allocate, load, pack.

A model is laid out on the meta device, so that nothing is drawn or copied that the checkpoint will overwrite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from paceline.checkpoint.dequant import read_weight
from paceline.checkpoint.draft import Draft
from paceline.checkpoint.load import load_weights
from paceline.checkpoint.map import not_of_target
from paceline.checkpoint.reader import Checkpoint
from paceline.config import ModelConfig, dtype_from_name
from paceline.errors import UserError
from paceline.models import build_model, build_mtp
from paceline.models.decoder import DecoderModel
from paceline.models.mtp import MTP, MTPDepth

M = TypeVar("M", DecoderModel, MTP)
WITHOUT_MTP = "use --drafter none (or ngram), or a checkpoint that has its MTP weights"


def load_target(
    path: str | Path, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
) -> DecoderModel:
    """The target model of a checkpoint directory, ready to run. dtype: `auto` is what config.json says.

    Raises UserError for an unknown family, a bad configuration, and any tensor missing, left over or misshapen."""
    config = ModelConfig.from_dir(path)
    model = allocate(lambda: build_model(config), _dtype(dtype, config), device)
    load_weights(model.weights(), Checkpoint(path), ignored=lambda name: not_of_target(name, config))
    return _ready(model)


def load_mtp(path: str | Path, target: DecoderModel, num_modules: int | None = None) -> MTP:
    """The first `num_modules` (None: all) MTP modules of a directory, with the target's dtype and device.

    path: the target's own checkpoint, another one of the same kind, or an export of its modules in any of `LAYOUTS`.
    What it repeats of embedding and head must equal the target's. Raises UserError as `load_target`, and for a
    directory without modules or with those of another model."""
    draft, like = Draft(path, target.config), target.norm.weight
    config = replace(target.config, num_nextn_predict_layers=draft.num_modules)
    mtp = allocate(lambda: build_mtp(config, target, num_modules), like.dtype, like.device)
    of_target, used = target.weights().keys(), len(mtp.depths)
    load_weights(
        {draft.name(name): view for name, view in mtp.weights().items()},
        draft.checkpoint,
        ignored=lambda name: draft.unused(name, used, of_target),
        mend=WITHOUT_MTP,
    )
    _same_shared(draft, mtp)
    return _ready(mtp)


def _same_shared(draft: Draft, mtp: MTP) -> None:
    """Every copy of embedding and head in the draft's directory is a copy of the target's."""
    views = cast(MTPDepth, mtp.depths[0]).shared_weights()
    for name, part in draft.shared().items():
        if not torch.equal(read_weight(draft.checkpoint, name).to(views[part]), views[part]):
            raise UserError(f"Tensor {name} differs from the target's own, which its modules share: {WITHOUT_MTP}.")


def allocate(make: Callable[[], M], dtype: torch.dtype, device: str | torch.device) -> M:
    """`make()` with parameters of `dtype` (unless their layer fixed another) on `device`, without values yet.

    A parameter that has memory already (a shared embedding) stays; parameters that are one (tied) stay one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = make()
    finally:
        torch.set_default_dtype(before)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False, remove_duplicate=False):
            if old.is_meta:
                made.setdefault(old, nn.Parameter(torch.empty_like(old, device=device)))
                setattr(module, name, made[old])
    return model.to(device)


def _ready(model: M) -> M:
    model.eval().requires_grad_(False)
    model.pack()
    return model


def _dtype(dtype: str | torch.dtype, config: ModelConfig) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    return config.dtype if dtype == "auto" else dtype_from_name(dtype)
