"""Counting: parameters, those that one token uses, bytes of weights, bytes of cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paceline.formats import SCALES
from paceline.inspection.facts import EXPERTS, Facts
from paceline.layers.attention import CacheSpec

KV_TOKENS = 1000
EMBEDDING = "model.embed_tokens.weight"
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")


@dataclass(frozen=True)
class Stored:
    """Tensors of one stored type; `numbers` counts their elements, scales included."""

    tensors: int
    numbers: int
    bytes: int


@dataclass(frozen=True)
class Part:
    """The target, or all MTP modules. Scales are bytes but not parameters, and what a module repeats of the target
    (embedding, head) is in `bytes_stored` only.

    active_parameters: what one token is multiplied with: of an embedding nothing, of the experts the chosen ones and
    the shared ones, a head whole; of MTP modules one of them, with the target's head. None: not known.
    bytes_in_dtype: of the weights, unquantised, in the dtype of config.json. kv_bytes: of 1000 tokens in that dtype."""

    parameters: int
    active_parameters: int | None
    bytes_stored: int
    bytes_in_dtype: int
    kv_bytes: int | None


def stored_types(facts: Facts) -> Mapping[str, Stored]:
    """By the format's own word (BF16, F8_E4M3, ...), the most bytes first."""
    sums: dict[str, list[int]] = {}
    for info in facts.tensors.values():
        total = sums.setdefault(info.dtype, [0, 0, 0])
        total[0] += 1
        total[1] += math.prod(info.shape)
        total[2] += info.size
    return {word: Stored(*total) for word, total in sorted(sums.items(), key=lambda item: -item[1][2])}


def count_target(facts: Facts) -> Part:
    """Of a family that is not known: everything but the scales."""
    if facts.plan is None or facts.config is None:
        total = _numbers(facts, facts.weights)
        return Part(total, None, facts.bytes_stored, total * facts.dtype.itemsize, None)
    names = [name for name in facts.plan.target if name in facts.tensors]
    total, config = _numbers(facts, names), facts.config
    looked_up = 0 if config.raw.get("tie_word_embeddings") else _numbers(facts, {EMBEDDING} & facts.tensors.keys())
    idle = _idle_experts(facts, names)
    return Part(
        total,
        None if idle is None else total - looked_up - idle,
        facts.bytes_stored - _bytes(facts, facts.of_modules),
        total * facts.dtype.itemsize,
        _kv_bytes(facts.plan.cache, facts),
    )


def count_modules(facts: Facts) -> Part | None:
    """None where no tensor of an MTP module was found, or the family is not known."""
    if facts.plan is None or facts.config is None or not facts.modules:
        return None
    own = [
        [name for part, name in parts.items() if part not in facts.plan.shared and not part.endswith(SCALES)]
        for parts in facts.modules.values()
    ]
    total, first = sum(_numbers(facts, names) for names in own), _numbers(facts, own[0])
    idle, config = _idle_experts(facts, own[0]), facts.config
    return Part(
        total,
        None if idle is None else first - idle + config.vocab_size * config.hidden_size,
        _bytes(facts, facts.of_modules),
        total * facts.dtype.itemsize,
        _kv_bytes(facts.plan.draft_cache, facts) if facts.plan.draft_cache else None,
    )


def _idle_experts(facts: Facts, names: Iterable[str]) -> int | None:
    """Parameters of routed experts that a token does not choose; None when config.json does not say how many it does.

    Example: 256 experts of 44 M parameters, 8 a token: 248 * 44 M."""
    routed = _numbers(facts, [name for name in names if ".experts." in name])
    experts, chosen = _field(facts, EXPERTS), _field(facts, _PER_TOKEN)
    if not routed:
        return 0
    return None if not experts or chosen is None else routed * max(experts - chosen, 0) // experts


def _field(facts: Facts, names: Iterable[str]) -> int | None:
    return next((value for name in names if isinstance(value := facts.raw.get(name), int)), None)


def _numbers(facts: Facts, names: Iterable[str]) -> int:
    tensors = facts.tensors
    return sum([math.prod(tensors[name].shape) for name in names])


def _bytes(facts: Facts, names: Iterable[str]) -> int:
    return sum(facts.tensors[name].size for name in names)


def _kv_bytes(cache: CacheSpec, facts: Facts) -> int:
    return KV_TOKENS * cache.numbers_per_token * facts.dtype.itemsize
