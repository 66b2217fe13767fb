"""What is odd about a checkpoint's tensors, one sentence each: what lacks, what contradicts config.json.

`CHECKS` are all there are; a new one is a function from the facts to its sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from paceline.checkpoint.quantization import stored_format
from paceline.errors import UserError
from paceline.formats import owner
from paceline.inspection.completeness import in_gap, of_module, of_target
from paceline.inspection.facts import Facts, Plan
from paceline.inspection.odd_files import FILE_CHECKS

Check = Callable[[Facts], Iterator[str]]
_FLOATS = ("F64", "F32", "F16", "BF16")
_WORDS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def oddities(facts: Facts) -> tuple[str, ...]:
    """All that a user should know before running this, the gravest first."""
    return tuple(sentence for check in (*CHECKS, *FILE_CHECKS) for sentence in check(facts))


def unknown_family(facts: Facts) -> Iterator[str]:
    if facts.refusal:
        yield facts.refusal


def target_tensors(facts: Facts) -> Iterator[str]:
    difference = of_target(facts)
    missing = [name for name in difference.missing if not in_gap(facts, name)]
    if missing:
        yield f"Tensor {several(missing)} of the target is missing: it cannot be loaded."
    if difference.misshapen:
        yield f"Tensor {several(difference.misshapen)} has another shape than config.json gives it."
    if difference.unexpected:
        yield f"Tensor {several(difference.unexpected)} has no place in this model."


def missing_experts(facts: Facts) -> Iterator[str]:
    gaps = facts.expert_gaps
    for block, numbers in list(gaps.items())[:1]:
        others = f", and there are gaps in {len(gaps) - 1} more layers" if len(gaps) > 1 else ""
        yield f"{block}.experts lacks expert {several([str(n) for n in numbers])}{others}."


def promised_modules(facts: Facts) -> Iterator[str]:
    """What vLLM once ran on garbage for: modules that config.json promises, without their weights."""
    if facts.plan is None:
        return
    if facts.promised and not facts.plan.modules:
        yield f"config.json names {facts.promised} MTP modules, which Paceline does not know of {_kind(facts)}."
    for depth in range(min(facts.promised, len(facts.plan.modules))):
        yield from _promised_module(facts, depth)


def _promised_module(facts: Facts, depth: int) -> Iterator[str]:
    difference, of = of_module(facts, depth), f"MTP module {depth + 1} of {facts.promised}"
    missing = [name for name in difference.missing if not in_gap(facts, name)]
    if missing and not difference.found and not difference.misshapen:
        yield f"{of} is promised by config.json, but all its tensors are missing, as {several(missing)}."
    elif missing:
        yield f"{of} lacks tensor {several(missing)}."
    if difference.misshapen:
        yield f"{of} has tensor {several(difference.misshapen)} in another shape than config.json gives it."
    if difference.unexpected:
        yield f"{of} has tensor {several(difference.unexpected)}, which has no place in it."


def unpromised_modules(facts: Facts) -> Iterator[str]:
    extra = [depth for depth in facts.modules if depth >= facts.promised]
    if extra:
        first = next(iter(facts.modules[extra[0]].values()))
        yield (
            f"There are tensors of {len(extra)} more MTP modules (as {first}) than config.json names "
            f"(num_nextn_predict_layers is {facts.promised}): set it to {max(facts.modules) + 1} to draft with them."
        )


def codes_without_scales(facts: Facts) -> Iterator[str]:
    """By name and by shape."""
    bare, odd, tensors = [], [], facts.tensors
    for name, form in facts.codes.items():
        scale, shape = tensors.get(name + form.suffix), tensors[name].shape
        if scale is None:
            bare.append(name)
        elif len(shape) != 2 or scale.shape != form.stored_scale_shape(*shape):
            odd.append(name + form.suffix)
    if bare:
        form = facts.codes[bare[0]]
        yield f"{form.name.upper()} tensor {several(bare)} comes without its scales ({bare[0]}{form.suffix})."
    if odd:
        yield f"Scale {several(odd)} has another shape than its weight asks for."


def scales_without_codes(facts: Facts) -> Iterator[str]:
    without = [name for name in facts.scales if owner(name) not in facts.codes]
    alone = [name for name in without if owner(name) not in facts.weights]
    idle = [name for name in without if owner(name) in facts.weights]
    if alone:
        yield f"Scale {several(alone)} is there without its weight."
    if idle:
        yield f"Scale {several(idle)} belongs to a weight that is not quantised."


def quantisation_told(facts: Facts) -> Iterator[str]:
    """quantization_config beside the stored types."""
    try:
        told = stored_format(facts.raw)
    except UserError as problem:
        yield str(problem)
        return
    if told is not None and told not in facts.codes.values():
        yield f"quantization_config of config.json says {told.name}, but no tensor is stored so."
    others = [name for name, form in facts.codes.items() if form is not told]
    if others:
        stored, says = facts.codes[others[0]].name, told.name if told else "nothing"
        yield f"Tensor {several(others)} is {stored}, but quantization_config of config.json says {says}."


def unreadable_types(facts: Facts) -> Iterator[str]:
    """Packed integers and the like; what a family does not name may be of any type."""
    plain = (name for name, info in facts.weights.items() if info.dtype not in _FLOATS and name not in facts.codes)
    odd = [name for name in plain if facts.plan and (name in facts.plan.target or name in facts.of_modules)]
    if odd:
        yield f"Tensor {several(odd)} is stored as {facts.tensors[odd[0]].dtype}, which Paceline does not read."


def mixed_types(facts: Facts) -> Iterator[str]:
    """Among the plain floating-point weights, but those that a family keeps in float32 whatever the others are."""
    if facts.plan is None:
        return
    kept = _kept_in_float32(facts.plan, facts.modules)
    names: dict[str, list[str]] = {}
    for name, info in facts.weights.items():
        if info.dtype in _FLOATS and name not in kept:
            names.setdefault(info.dtype, []).append(name)
    (main, most), *others = Counter({word: len(found) for word, found in names.items()}).most_common() or [("", 0)]
    for word, _ in others:
        yield f"Weights are of mixed types: {most} tensors are {main}, but {several(names[word])} is {word}."
    told = str(facts.dtype).removeprefix("torch.")
    if main in _WORDS and (facts.raw.get("dtype") or facts.raw.get("torch_dtype")) and _WORDS[main] != told:
        yield f"config.json says {told}, but the weights are stored as {_WORDS[main]}."


def _kept_in_float32(plan: Plan, found: Mapping[int, Mapping[str, str]]) -> set[str]:
    """Names in the target, and in the MTP modules; of modules that are not promised, all."""
    kept = {name for name, view in plan.target.items() if view.dtype == torch.float32}
    for depth, parts in found.items():
        planned = plan.modules[depth] if depth < len(plan.modules) else {}
        kept |= {name for part, name in parts.items() if part not in planned or planned[part].dtype == torch.float32}
    return kept


def tied_head(facts: Facts) -> Iterator[str]:
    if facts.raw.get("tie_word_embeddings") is True and "lm_head.weight" in facts.tensors:
        yield "lm_head.weight is stored though tie_word_embeddings is true: the embedding is used as the head."


def several(names: Sequence[str]) -> str:
    """Example: `a (and 2 more)`."""
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _kind(facts: Facts) -> str:
    return facts.config.model_type if facts.config else "this family"


CHECKS: tuple[Check, ...] = (
    unknown_family,
    target_tensors,
    missing_experts,
    promised_modules,
    unpromised_modules,
    codes_without_scales,
    scales_without_codes,
    quantisation_told,
    unreadable_types,
    mixed_types,
    tied_head,
)
