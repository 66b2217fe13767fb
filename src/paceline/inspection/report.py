"""What a directory of weights is, from headers alone: the facts behind `paceline inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paceline.formats import BLOCK
from paceline.inspection.completeness import Module, modules
from paceline.inspection.facts import Facts, gather
from paceline.inspection.oddities import oddities
from paceline.inspection.tally import Part, Stored, count_modules, count_target, stored_types

BLOCKS = f"{BLOCK}x{BLOCK} blocks"


@dataclass(frozen=True)
class Report:
    """`to_dict` has these fields, as plain data; None is what the directory does not tell.

    layout: "checkpoint" (a model, whole), or "xllm", "sglang", "original" for MTP modules that travel alone.
    family: the model_type; supported: Paceline runs it. layers: without the MTP modules'; context: in tokens.
    dtype: what config.json computes in. stored: by stored type. quantization: what is stored quantised.
    target: None for MTP modules alone. modules: the MTP modules promised or found; mtp: their sizes.
    warnings: sentences, the gravest first."""

    directory: str
    layout: str
    family: str
    supported: bool
    architectures: tuple[str, ...]
    layers: int | None
    context: int | None
    dtype: str
    stored: Mapping[str, Stored]
    quantization: str | None
    target: Part | None
    modules: tuple[Module, ...]
    mtp: Part | None
    warnings: tuple[str, ...]

    @property
    def usable_modules(self) -> int:
        """How many modules can draft: the complete ones before the first that is not."""
        return next((i for i, module in enumerate(self.modules) if not module.complete), len(self.modules))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"usable_modules": self.usable_modules}


def inspect(directory: str | Path) -> Report:
    """Reads config.json, the index and the headers; no tensor.

    Raises UserError for what no reader could open: a missing config.json, a truncated file, an index without its files.
    All else that is odd is a warning."""
    facts = gather(Path(directory))
    raw, named = facts.raw, facts.raw.get("architectures")
    return Report(
        directory=str(directory),
        layout=facts.layout if facts.is_draft else "checkpoint",
        family=str(raw.get("model_type", "")),
        supported=facts.plan is not None,
        architectures=tuple(map(str, named)) if isinstance(named, list) else (),
        layers=_whole(facts, "num_hidden_layers"),
        context=_whole(facts, "max_position_embeddings"),
        dtype=str(facts.dtype).removeprefix("torch."),
        stored=stored_types(facts),
        quantization=_quantization(facts),
        target=None if facts.is_draft else count_target(facts),
        modules=modules(facts),
        mtp=count_modules(facts),
        warnings=oddities(facts),
    )


def _whole(facts: Facts, field: str) -> int | None:
    value = facts.raw.get(field)
    return value if isinstance(value, int) else None


def _quantization(facts: Facts) -> str | None:
    """By what is stored, whatever config.json says. Example: `fp8, 128x128 blocks`."""
    forms = {form.name: form for form in facts.codes.values()}
    grains = {name: "one scale an output" if form.group is None else BLOCKS for name, form in forms.items()}
    return ", ".join(f"{name}, {grain}" for name, grain in sorted(grains.items())) or None
