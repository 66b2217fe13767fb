"""Where MTP modules lie when they travel alone: three published layouts, both ways.

    layout    part                                      module d's tensor            file
    xllm      enorm, hnorm, eh_proj, shared_head,       model.{part} for d = 0       mtp_layer_parameters.safetensors
              embed_tokens
              the block, and every part for d > 0       model.layers.{d}.{part}
    sglang    every part                                model.layers.{d}.{part}      nextn_layer_parameters.safetensors
    original  every part                                as in the full checkpoint    model.safetensors

Sources: xLLM's tools/export_mtp.py and SGLang's scripts/export_deepseek_nextn.py. Both know one module only; for d = 0
the names are theirs, and further modules continue the count. In SGLang's layout embedding and head are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from paceline.checkpoint.reader import SINGLE
from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.models import mtp_names
from paceline.models.mtp import MTPNames

LAYOUTS = ("xllm", "sglang", "original")
FILES = {
    "xllm": "mtp_layer_parameters.safetensors",
    "sglang": "nextn_layer_parameters.safetensors",
    "original": SINGLE,
}
SHARED = ("embed_tokens.weight", "shared_head.head.weight")  # the target's, repeated by some checkpoints

_OUTER = ("embed_tokens", "shared_head", "enorm", "hnorm", "eh_proj")  # what xLLM lifts out of the layer
_LIFTED = re.compile(r"model\.((?:" + "|".join(_OUTER) + r")\..+)")
_MARKS = ("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight")  # in every module, in no layer
_NUMBERED = MTPNames("model.layers.{depth}.")
_ARCHITECTURES = {
    "xllm": {"deepseek_v3": "DeepseekMTPForCausalLM", "glm4_moe": "Glm4MoeMtpForCausalLM"},
    "sglang": {"deepseek_v3": "DeepseekV3ForCausalLMNextN", "glm4_moe": "Glm4MoeForCausalLMNextN"},
}
_EXCLUSIONS = ("modules_to_not_convert", "ignored_layers", "ignore")  # lists of module names in quantization_config


def layout_name(layout: str, depth: int, part: str, config: ModelConfig) -> str:
    """The tensor that holds `part` (DeepSeek's word) of module `depth` (from 0); config: the full checkpoint's.

    Example, 61 layers: (0, "enorm.weight") is model.enorm.weight for xllm, model.layers.0.enorm.weight for sglang,
    model.layers.61.enorm.weight for original."""
    if layout == "original":
        return mtp_names(config).name(depth, part, config.num_hidden_layers)
    if layout == "xllm" and depth == 0 and part.split(".")[0] in _OUTER:
        return "model." + part
    return _NUMBERED.name(depth, part, config.num_hidden_layers)


def find_part(layout: str, name: str, config: ModelConfig) -> tuple[int, str] | None:
    """Depth and part of a tensor, the inverse of `layout_name`; None for what is no module's."""
    return _finder(layout, config)(name)


def _finder(layout: str, config: ModelConfig) -> Callable[[str], tuple[int, str] | None]:
    """`find_part` of many names."""
    layers = config.num_hidden_layers
    if layout == "original":
        of_family = mtp_names(config)
        return lambda name: of_family.find(name, layers)

    def find(name: str) -> tuple[int, str] | None:
        lifted = _LIFTED.match(name) if layout == "xllm" else None
        found = (0, lifted[1]) if lifted else _NUMBERED.find(name, layers)
        return found if found is not None and layout_name(layout, *found, config) == name else None

    return find


def layout_of(names: Iterable[str]) -> str:
    """The layout of a directory with these tensors; a full checkpoint counts as original.

    No full checkpoint has an MTP part right below `model.` or in layer 0, so one such name tells."""
    names = set(names)
    if any("model." + mark in names for mark in _MARKS):
        return "xllm"
    return "sglang" if any("model.layers.0." + mark in names for mark in _MARKS) else "original"


def find_modules(names: Iterable[str], config: ModelConfig) -> dict[tuple[int, str], str]:
    """(depth, part) to tensor name, of every tensor that belongs to an MTP module, block scales included, in the order
    of `names`: those of a full checkpoint or of a draft directory in any layout. config: the full checkpoint's."""
    names = list(names)
    layout = layout_of(names)
    find = _finder(layout, config)
    found = ((find(name), name) for name in names)
    return {part: name for part, name in found if part is not None}


def layout_config(layout: str, config: ModelConfig, num_modules: int, *, dequantised: bool) -> dict[str, Any]:
    """config.json of a draft directory with `num_modules` modules. dequantised: block scales were multiplied in, and
    all weights are bfloat16. What it says of quantisation is true of the tensors beside it.

    Raises UserError for a layout that cannot hold this family."""
    kind, raw = config.model_type, config.to_dict()
    quantised = raw.pop("quantization_config", None)
    raw.pop("auto_map", None)  # it names Python files, and none travels
    changes: dict[str, Any] = {"num_nextn_predict_layers": num_modules}
    if layout != "original":
        if kind not in _ARCHITECTURES[layout]:
            known = ", ".join(_ARCHITECTURES[layout])
            raise UserError(f"layout {layout} is only known for {known}, not for {kind}: use --layout original.")
        changes |= {"num_hidden_layers": num_modules, "architectures": [_ARCHITECTURES[layout][kind]]}
    if layout == "xllm":
        changes |= {"model_type": kind + "_mtp", "first_k_dense_replace": 0}
    if dequantised:
        changes |= {name: "bfloat16" for name in ("dtype", "torch_dtype") if name in raw}
    return raw | changes | _quantisation(layout, config, None if dequantised else quantised)


def _quantisation(layout: str, config: ModelConfig, quantised: Any) -> dict[str, Any]:
    """The field as the published tools write it: xLLM's reader wants an empty string where there is none."""
    if not quantised:
        return {"quantization_config": ""} if layout == "xllm" else {}
    lists = {key: quantised[key] for key in _EXCLUSIONS if isinstance(quantised.get(key), list)}
    renamed = {key: list(_renamed(layout, config, modules)) for key, modules in lists.items()}
    return {"quantization_config": {**quantised, **renamed}}


def _renamed(layout: str, config: ModelConfig, modules: Iterable[Any]) -> Iterable[Any]:
    """Unquantised modules in the words of the layout; other layers of the full checkpoint are not there.

    They are prefixes of tensor names, so `.x` makes them whole."""
    for module in modules:
        found = find_part("original", f"{module}.x", config)
        if found is not None:
            yield layout_name(layout, *found, config).removesuffix(".x")
        elif not re.match(r"model\.layers\.\d", str(module)):
            yield module
