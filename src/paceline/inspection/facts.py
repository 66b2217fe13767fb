"""What a directory of weights holds, beside what its config.json promises; read from headers alone.

What it should hold is asked of the family's own code, on the meta device, where a weight has a name and a shape but no
memory: whoever adds a family has nothing to add here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.checkpoint.layouts import find_modules, layout_of
from paceline.checkpoint.reader import DTYPES, Checkpoint, TensorInfo
from paceline.config import ModelConfig, dtype_from_name, read_config
from paceline.errors import UserError
from paceline.formats import SCALES, Format, format_of
from paceline.layers.attention import CacheSpec
from paceline.models import build_model, build_mtp, families, family
from paceline.models.meta import laid_out
from paceline.models.mtp import MTPDepth

MAX_EXPERTS = 1 << 20  # of all layers, beyond any model
EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")

Views = Mapping[str, Tensor]  # without memory


@dataclass(frozen=True)
class Plan:
    """What a family makes of config.json. target: by tensor name. modules: for each MTP module, by part (see
    `MTPNames`). shared: parts of the target that a module may repeat. What is float32 here is so in every dtype."""

    target: Views
    modules: tuple[Views, ...]
    shared: Views
    cache: CacheSpec
    draft_cache: CacheSpec | None


@dataclass(frozen=True)
class Facts:
    """config: the full checkpoint's, as far as a draft's own tells it. plan: None where `refusal` tells why there is
    none. modules: depth (from 0) to part to tensor name, of all MTP tensors found. files: the directory's own. told:
    what the index says beside the names, where it is the index that counts."""

    directory: Path
    raw: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    told: Mapping[str, Any] | None
    files: frozenset[str]
    layout: str
    config: ModelConfig | None
    plan: Plan | None
    refusal: str
    modules: Mapping[int, Mapping[str, str]]

    @cached_property
    def scales(self) -> Mapping[str, TensorInfo]:
        """What quantised weights are multiplied with."""
        return {name: info for name, info in self.tensors.items() if name.endswith(SCALES)}

    @cached_property
    def weights(self) -> Mapping[str, TensorInfo]:
        """All tensors but the scales."""
        return {name: info for name, info in self.tensors.items() if name not in self.scales}

    @cached_property
    def codes(self) -> Mapping[str, Format]:
        """The quantised weights, by what is stored."""
        forms = {word: format_of(dtype) for word, dtype in DTYPES.items()}
        found = {name: forms.get(info.dtype) for name, info in self.weights.items()}
        return {name: form for name, form in found.items() if form is not None}

    @cached_property
    def bytes_stored(self) -> int:
        """Of all tensors."""
        return sum(info.size for info in self.tensors.values())

    @cached_property
    def of_modules(self) -> frozenset[str]:
        """The tensors of MTP modules."""
        return frozenset(name for parts in self.modules.values() for name in parts.values())

    @cached_property
    def dtype(self) -> torch.dtype:
        """What config.json computes in."""
        try:
            return dtype_from_name(str(self.raw.get("dtype") or self.raw.get("torch_dtype") or "float32"))
        except UserError:
            return torch.float32

    @cached_property
    def expert_gaps(self) -> Mapping[str, list[int]]:
        """Name before `.experts.` to the numbers that lack there, if others are. Example: {"model.layers.3.mlp": [7]}.

        How many there should be config.json says, else the largest number anywhere."""
        there: dict[str, set[str]] = {}
        for name in self.weights:
            block, number = expert_of(name)
            if number:
                there.setdefault(block, set()).add(number)
        told = next((value for field in EXPERTS if isinstance(value := self.raw.get(field), int)), 0)
        count = told or max((int(number) for numbers in there.values() for number in numbers), default=-1) + 1
        if count * len(there) > MAX_EXPERTS:
            return {}
        every = [str(number) for number in range(count)]
        gaps = {block: [int(number) for number in every if number not in found] for block, found in there.items()}
        return {block: numbers for block, numbers in gaps.items() if numbers}

    @property
    def is_draft(self) -> bool:
        """MTP modules that travel alone."""
        return bool(self.modules) and len(self.of_modules) == len(self.tensors)

    @property
    def promised(self) -> int:
        """MTP modules that config.json names."""
        return self.config.num_nextn_predict_layers if self.config else 0


def expert_of(name: str) -> tuple[str, str]:
    """Name before `.experts.`, and the expert's number; of any other tensor there is no number.

    Example: `model.layers.3.mlp.experts.7.up_proj.weight` is of ("model.layers.3.mlp", "7")."""
    block, _, rest = name.partition(".experts.")
    number = rest.partition(".")[0]
    return block, number if number.isdecimal() and number.isascii() and len(number) < 8 else ""


def gather(directory: Path) -> Facts:
    """Raises UserError for a directory that no reader of safetensors would open; an unknown family is only noted."""
    raw, checkpoint = read_config(directory), Checkpoint(directory)
    tensors = checkpoint.infos
    layout = layout_of(tensors)
    config, plan, refusal = None, None, ""
    try:
        config = full_config(raw, layout)
        plan = lay_out(config)
    except UserError as problem:
        refusal = str(problem)
    files = frozenset(path.name for path in directory.iterdir() if path.is_file())
    modules = _modules(tensors, config) if config else {}
    return Facts(directory, raw, tensors, checkpoint.told, files, layout, config, plan, refusal, modules)


def full_config(raw: Mapping[str, Any], layout: str) -> ModelConfig:
    """The configuration of the checkpoint that a draft's config.json was made from; that of a full one is its own.

    Raises UserError for a family that is not known, or a field that lacks."""
    raw, kind = dict(raw), str(raw.get("model_type", ""))
    if layout != "original":
        raw["model_type"] = kind = kind.removesuffix("_mtp")
        # A module's block is made like a layer behind the last: not one of the dense ones that come first.
        first, layers = raw.get("first_k_dense_replace"), raw.get("num_hidden_layers")
        if isinstance(first, int) and isinstance(layers, int):
            raw["num_hidden_layers"] = max(layers, first)
    if kind not in families():
        raise UserError(f"model_type {kind!r} is not supported; known families: {', '.join(sorted(families()))}.")
    return ModelConfig.from_dict(raw)


def lay_out(config: ModelConfig) -> Plan:
    """Names and shapes of all that the family's code would load. Raises UserError for fields without sense."""
    experts = max((raw for name in EXPERTS if isinstance(raw := config.raw.get(name), int)), default=0)
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    if experts * layers > MAX_EXPERTS:
        raise UserError(f"config.json names {layers} layers of {experts} experts, which no model has.")
    with torch.no_grad(), laid_out(torch.bfloat16):  # views of what is never trained are made in half the time
        target = build_model(config)
        speaks_mtp = config.num_nextn_predict_layers > 0 and hasattr(family(config), "build_mtp")
        mtp = build_mtp(config, target) if speaks_mtp else None
    depths = [depth for depth in mtp.depths if isinstance(depth, MTPDepth)] if mtp else []
    return Plan(
        target.weights(),
        tuple(depth.weights() for depth in depths),
        depths[0].shared_weights() if depths else {},
        target.cache,
        mtp.cache if mtp else None,
    )


def _modules(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> Mapping[int, Mapping[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for (depth, part), name in find_modules(tensors, config).items():
        found.setdefault(depth, {})[part] = name
    return dict(sorted(found.items()))
