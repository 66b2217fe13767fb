"""What config.json says of quantised weights, both ways, and which format a model is to run in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from paceline.checkpoint.reader import DTYPES, Checkpoint
from paceline.errors import UserError
from paceline.formats import BLOCK, FORMATS, FP8, INT8, Format, format_of

KINDS = (*FORMATS, "none")
_FIELD = "quantization_config"
_INT8_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}


def stored_format(raw: Mapping[str, Any]) -> Format | None:
    """The format that a config.json announces; None when it announces none.

    int8 as the compressed-tensors library writes it (`int-quantized`, weights alone, by channel), fp8 as DeepSeek-V3.
    Raises UserError for any other."""
    said = raw.get(_FIELD)
    if not said:
        return None
    if isinstance(said, Mapping):
        known = {"fp8": (_is_fp8, FP8), "compressed-tensors": (_is_int8, INT8)}
        fits, form = known.get(str(said.get("quant_method")), (None, None))
        if fits is not None and fits(said):
            return form
    method = said.get("quant_method") if isinstance(said, Mapping) else said
    raise UserError(
        f"config.json: weights quantised as {method!r} with these settings cannot be read; use the original weights, "
        f"FP8 with {BLOCK}x{BLOCK} blocks, or what `paceline quantize` writes."
    )


def _is_fp8(said: Mapping[str, Any]) -> bool:
    return said.get("weight_block_size") == [BLOCK, BLOCK] and said.get("fmt", "e4m3") == "e4m3"


def _is_int8(said: Mapping[str, Any]) -> bool:
    groups = said.get("config_groups")
    if said.get("format") != "int-quantized" or not isinstance(groups, Mapping) or len(groups) != 1:
        return False
    (group,) = groups.values()
    if not isinstance(group, Mapping) or group.get("input_activations") or group.get("output_activations"):
        return False
    weights = group.get("weights")
    if group.get("format", "int-quantized") != "int-quantized":
        return False
    return isinstance(weights, Mapping) and all(weights.get(name) == value for name, value in _INT8_WEIGHTS.items())


def announce(form: Format, kept: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint in this format. kept: names of the modules that are not quantised."""
    if form is FP8:
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": list(kept),
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": "int-quantized",
                "weights": dict(_INT8_WEIGHTS),
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": list(kept),
    }


def chosen_format(asked: str | None, raw: Mapping[str, Any], device: str | torch.device) -> Format | None:
    """The format to run in. asked None: as the checkpoint is stored, but FP8 on a CPU becomes plain numbers, which are
    twice the size there and many times as fast. Raises UserError for a name that is no format."""
    stored = stored_format(raw)
    on_cpu = torch.device(device).type == "cpu"
    chosen = format_named(asked) if asked is not None else None if stored is FP8 and on_cpu else stored
    if chosen is stored is FP8 and raw[_FIELD].get("scale_fmt") == "ue8m0":  # DeepSeek-V3.1
        return replace(FP8, powers=True)
    return chosen


def stays_plain(form: Format | None, raw: Mapping[str, Any], checkpoint: Checkpoint) -> Callable[[str], bool]:
    """Whether a tensor is to stay as numbers in a model of this format: a checkpoint in the same format has chosen what
    it keeps so. Of any other checkpoint all is quantised that can be."""
    stored = stored_format(raw)
    if form is None or stored is None or stored.name != form.name:
        return lambda name: False
    return lambda name: name in checkpoint and format_of(DTYPES.get(checkpoint[name].dtype, torch.bool)) is None


def format_named(name: str) -> Format | None:
    """`none` is None. Raises UserError for a name that is no format."""
    if name not in KINDS:
        raise UserError(f"quantization {name!r} is not known; use one of {', '.join(KINDS)}.")
    return FORMATS.get(name)
