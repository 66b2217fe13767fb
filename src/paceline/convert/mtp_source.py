"""The MTP modules of a full checkpoint: found through its index, and known to be complete and sound.

Only the shards that hold them are opened, and of those only headers and block scales are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paceline.checkpoint.layouts import SHARED, find_part, layout_name
from paceline.checkpoint.load import account
from paceline.checkpoint.reader import DTYPES, Checkpoint, TensorInfo
from paceline.config import ModelConfig
from paceline.convert.stream import read_tensor
from paceline.errors import UserError
from paceline.formats import BLOCK, FP8, INT8, Format, owner
from paceline.models import build_model, build_mtp, mtp_names
from paceline.models.meta import laid_out

Part = tuple[int, str]  # depth from 0, and DeepSeek's word for the part
MAIN = EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # the target's
COMPUTED = "rotary_emb.inv_freq"  # a buffer that old checkpoints keep; no weight
MEND = "use the complete checkpoint, and the config.json that came with it"


@dataclass(frozen=True)
class Stored:
    """One part of a module as the checkpoint keeps it. scale: that of FP8 or INT8 codes; its name is `suffix` longer.

    fixed: the model computes with it in float32, whatever the dtype of the others."""

    name: str
    info: TensorInfo
    fixed: bool
    suffix: str
    scale: TensorInfo | None


def find_mtp(directory: Path, config: ModelConfig, *, shared: bool) -> dict[Part, Stored]:
    """Every part of every module; with `shared` also what a family shares with the target, embedding and head: the
    module's own copies, else the main ones.

    Raises UserError, naming the tensor, for one that is missing, left over, or of the wrong shape or type, for scales
    that do not fit their weight or are not finite; and what `Checkpoint` refuses."""
    own, repeated = _expected(config)
    expected = own | (repeated if shared else {})

    find, main_layers = mtp_names(config).find, config.num_hidden_layers

    def passed_over(name: str) -> bool:
        part = find(name, main_layers)
        return part is None or name.endswith(COMPUTED) or (not shared and (part[0], owner(part[1])) in repeated)

    checkpoint = Checkpoint(directory, lambda name: not passed_over(name))
    if any(layout_name("original", *part, config) not in checkpoint for part in expected.keys() & repeated.keys()):
        checkpoint = Checkpoint(directory, lambda name: not passed_over(name) or owner(name) in MAIN)
    names = {part: layout_name("original", *part, config) for part in expected}
    absent = [part for part in repeated if part in names and names[part] not in checkpoint]
    names |= {part: _of_target(part, config) for part in absent}
    views = {names[part]: view for part, view in expected.items()}
    none = "it was saved without its MTP modules; " if all(map(passed_over, checkpoint)) else ""
    account(views, checkpoint, ignored=passed_over, mend=none + MEND)
    return {part: _stored(name, checkpoint, views[name]) for part, name in names.items()}


def _expected(config: ModelConfig) -> tuple[dict[Part, Tensor], dict[Part, Tensor]]:
    """What the modules of this configuration consist of, and what a checkpoint may repeat of the target, as tensors
    without memory."""
    if config.num_nextn_predict_layers == 0:
        raise UserError("config.json names no MTP modules (num_nextn_predict_layers is 0): use a model that has them.")
    with laid_out(torch.bfloat16):
        mtp = build_mtp(config, build_model(config))
    return _parts(mtp.weights(), config), _parts(mtp.shared_weights(), config)


def _parts(weights: dict[str, Tensor], config: ModelConfig) -> dict[Part, Tensor]:
    found = {find_part("original", name, config): view for name, view in weights.items()}
    return {part: view for part, view in found.items() if part is not None}


def _of_target(part: Part, config: ModelConfig) -> str:
    """A module without a copy of embedding or head (GLM-4.6, MiMo) uses the target's; a tied head is the embedding."""
    tied = bool(config.raw.get("tie_word_embeddings", False))
    return EMBEDDING if part[1] == SHARED[0] or tied else HEAD


def _stored(name: str, checkpoint: Checkpoint, view: Tensor) -> Stored:
    info = checkpoint[name]
    dtype, fixed = DTYPES.get(info.dtype), view.dtype == torch.float32
    form = FP8 if info.dtype.startswith("F8") else INT8 if dtype == INT8.dtype else None
    if dtype is None or (form is None and not dtype.is_floating_point):
        raise UserError(f"Tensor {name} has the unsupported type {info.dtype}: use weights in BF16, FP8 or INT8.")
    if form is None:
        return Stored(name, info, fixed, "", None)
    if name + form.suffix not in checkpoint:
        raise UserError(f"Tensor {name} ({info.dtype}) comes without {name + form.suffix}: {MEND}.")
    scale = checkpoint[name + form.suffix]
    _check_scale(name + form.suffix, scale, info, form)
    return Stored(name, info, fixed, form.suffix, scale)


def _check_scale(name: str, scale: TensorInfo, weight: TensorInfo, form: Format) -> None:
    fits = len(weight.shape) == 2 and scale.shape == form.stored_scale_shape(*weight.shape)
    if not fits or scale.dtype not in ("F32", "BF16", "F16"):
        each = "row" if form.group is None else f"{BLOCK}x{BLOCK} block"
        raise UserError(
            f"Tensor {name} has {scale.dtype} {list(scale.shape)}, not one float for each {each} of "
            f"{list(weight.shape)}: {MEND}."
        )
    if not read_tensor(scale).isfinite().all():
        raise UserError(f"Tensor {name} holds scales that are not finite: download the checkpoint again.")
