"""From a directory to a model ready to run: lay out, allocate, load, pack.

A model is laid out on the meta device, so that nothing is drawn or copied that the checkpoint will overwrite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from paceline.checkpoint.dequant import read_as
from paceline.checkpoint.draft import Draft
from paceline.checkpoint.layouts import layout_of
from paceline.checkpoint.load import load_weights
from paceline.checkpoint.map import not_of_target
from paceline.checkpoint.quantization import chosen_format, format_named, stays_plain
from paceline.checkpoint.reader import Checkpoint
from paceline.config import ModelConfig, dtype_from_name
from paceline.errors import UserError
from paceline.formats import INT8, Format, format_of
from paceline.layers.quant import quantise_modules
from paceline.models import build_model, build_mtp
from paceline.models.decoder import DecoderModel
from paceline.models.mtp import MTP, MTPDepth
from paceline.speculative_config import AUTO

M = TypeVar("M", DecoderModel, MTP)
OWN_SHARED = "use modules of this model, exported with --shared drop, or --drafter none (or ngram)"
WITHOUT_MTP = "use --drafter none (or ngram), or a checkpoint that has its MTP weights"


def load_target(
    path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    quantization: str | None = None,
) -> DecoderModel:
    """The target model of a checkpoint directory, ready to run. dtype: `auto` is what config.json says. quantization:
    int8, fp8, none; None as `chosen_format`.

    Raises UserError for an unknown family, a bad configuration, and any tensor missing, left over or misshapen."""
    config, checkpoint = ModelConfig.from_dir(path), Checkpoint(path)
    if layout_of(checkpoint) != "original":
        raise UserError(f"{path} holds MTP modules alone: give it as draft model, and their own model as the model.")
    form = chosen_format(quantization, config.raw, device)
    plain = stays_plain(form, config.raw, checkpoint)
    model = allocate(lambda: quantised(build_model(config), form, plain), _dtype(dtype, config), device)
    model.form = form
    load_weights(model.weights(), checkpoint, ignored=lambda name: not_of_target(name, config))
    checkpoint.release()
    model.eval().requires_grad_(False)
    model.pack()
    return model


def load_mtp(
    path: str | Path, target: DecoderModel, num_modules: int | None = None, quantization: str | None = None
) -> MTP:
    """The first `num_modules` (None: all) MTP modules of a directory, with the target's dtype and device.

    path: the target's own checkpoint, another one of the same kind, or an export of its modules in any of `LAYOUTS`.
    What it repeats of embedding and head must equal the target's. quantization None: as the target; auto: the same, but
    they run in int8 where that is a compiled call, as with int8. Raises UserError as `load_target`, and for a directory
    without modules or with those of another model."""
    draft, like = Draft(path, target.config), target.norm.weight
    config = replace(target.config, num_nextn_predict_layers=draft.num_modules)
    form = target.form if quantization in (None, AUTO) else format_named(quantization)
    stored_plain = stays_plain(form, ModelConfig.from_dir(path).raw, draft.checkpoint)

    def make() -> MTP:
        return quantised(build_mtp(config, target, num_modules), form, lambda name: stored_plain(draft.name(name)))

    mtp = allocate(make, like.dtype, like.device)
    mtp.form = form
    of_target, used = target.weights().keys(), len(mtp.depths)
    load_weights(
        {draft.name(name): view for name, view in mtp.weights().items()},
        draft.checkpoint,
        ignored=lambda name: draft.unused(name, used, of_target),
        mend=WITHOUT_MTP,
    )
    _same_shared(draft, mtp)
    mtp.eval().requires_grad_(False)
    mtp.pack(codes=quantization == INT8.name or (quantization == AUTO and form in (None, INT8)))
    return mtp


def _same_shared(draft: Draft, mtp: MTP) -> None:
    """Every copy of embedding and head in the draft's directory is a copy of the target's."""
    views = cast(MTPDepth, mtp.depths[0]).shared_weights()
    for name, part in draft.shared().items():
        if part in views and not _is_copy(draft.checkpoint, name, views, part):
            raise UserError(f"Tensor {name} differs from the target's own, which its modules share: {OWN_SHARED}.")


def _is_copy(checkpoint: Checkpoint, name: str, views: dict[str, Tensor], part: str) -> bool:
    """Whether a stored tensor equals a part of the target; of codes the scales must too."""
    (numbers, scale), form = read_as(checkpoint, name, views[part].dtype), format_of(views[part].dtype)
    pairs = [(numbers, views[part])]
    if scale is not None and form is not None:
        pairs.append((scale, views[part + form.suffix]))
    return all(torch.equal(stored.to(view), view) for stored, view in pairs)


def quantised(model: M, form: Format | None, plain: Callable[[str], bool]) -> M:
    """The same model, its layers swapped for those of a number format; without the weights whose name is `plain`."""
    if form is not None:
        kept = [view for name, view in model.weights().items() if plain(name)]
        quantise_modules(model, form, {view if view._base is None else view._base for view in kept})
    return model


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
                made.setdefault(
                    old, nn.Parameter(torch.empty_like(old, device=device), requires_grad=old.requires_grad)
                )
                setattr(module, name, made[old])
    return model.to(device)


def _dtype(dtype: str | torch.dtype, config: ModelConfig) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    return config.dtype if dtype == "auto" else dtype_from_name(dtype)
