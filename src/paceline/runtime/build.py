"""From a directory to a model ready to run: lay out, allocate, load, pack.

A model is laid out on the meta device, so that nothing is drawn or copied that the checkpoint will overwrite.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from paceline.checkpoint.dequant import read_weight
from paceline.checkpoint.load import load_weights
from paceline.checkpoint.map import mtp_depth, not_of_target
from paceline.checkpoint.reader import Checkpoint
from paceline.config import ModelConfig, dtype_from_name
from paceline.errors import UserError
from paceline.models import build_model, build_mtp
from paceline.models.decoder import DecoderModel
from paceline.models.mtp import MTP

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
    """The first `num_modules` (None: all) MTP modules of the same directory, with the target's dtype and device.

    Raises UserError as `load_target`, and when the checkpoint was saved without its MTP modules."""
    config, like = target.config, target.norm.weight
    mtp = allocate(lambda: build_mtp(config, target, num_modules), like.dtype, like.device)
    checkpoint, depths = Checkpoint(path), range(len(mtp.depths))
    shared = mtp.shared_weights()
    load_weights(
        mtp.weights(),
        checkpoint,
        ignored=lambda name: mtp_depth(name, config) not in depths or name in shared,
        mend=WITHOUT_MTP,
    )
    for name in shared.keys() & checkpoint.keys():
        if not torch.equal(read_weight(checkpoint, name).to(shared[name]), shared[name]):
            raise UserError(f"Tensor {name} differs from the target's own, which this family shares: {WITHOUT_MTP}.")
    return _ready(mtp)


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
