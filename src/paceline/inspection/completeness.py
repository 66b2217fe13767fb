"""What of a model's tensors a directory holds: those that lack, those of the wrong shape, those without a place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from paceline.checkpoint.layouts import layout_name
from paceline.checkpoint.map import not_of_target
from paceline.inspection.facts import Facts, expert_of

COMPUTED = "rotary_emb.inv_freq"  # a buffer that old exports keep


@dataclass(frozen=True)
class Difference:
    """Tensor names; `found` counts those in their place."""

    found: int
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.missing and not self.misshapen and not self.unexpected


@dataclass(frozen=True)
class Module:
    """The state of one MTP module; depth counts from 1. promised: config.json names it."""

    depth: int
    promised: bool
    tensors: int
    complete: bool
    missing: tuple[str, ...]


def of_target(facts: Facts) -> Difference:
    """Of a draft directory, or an unknown family, nothing is expected and nothing is odd."""
    if facts.plan is None or facts.config is None or facts.is_draft:
        return Difference(0, (), (), ())
    rest = facts.weights.keys() - facts.plan.target.keys() - facts.of_modules
    config = facts.config
    left_over = [name for name in rest if not not_of_target(name, config)]
    return _difference(facts, facts.plan.target, left_over)


def of_module(facts: Facts, depth: int) -> Difference:
    """Of MTP module `depth` (from 0), by its tensors' names in this directory; what it shares may lack."""
    assert facts.plan is not None and facts.config is not None
    found, config = facts.modules.get(depth, {}), facts.config
    expected = facts.plan.modules[depth] if depth < len(facts.plan.modules) else {}
    views = {layout_name(facts.layout, depth, part, config): view for part, view in expected.items()}
    views |= {found[part]: view for part, view in facts.plan.shared.items() if part in found}
    left_over = [n for n in found.values() if n in facts.weights and n not in views and not n.endswith(COMPUTED)]
    return _difference(facts, views, left_over if expected else [])


def modules(facts: Facts) -> tuple[Module, ...]:
    """All that config.json promises and all that are there; none of an unknown family."""
    if facts.plan is None:
        return ()
    states = []
    for depth in sorted({*range(facts.promised), *facts.modules}):
        difference, promised = of_module(facts, depth), depth < facts.promised
        complete = promised and depth < len(facts.plan.modules) and difference.complete
        tensors = len(facts.modules.get(depth, {}))
        states.append(Module(depth + 1, promised, tensors, complete, difference.missing))
    return tuple(states)


def in_gap(facts: Facts, name: str) -> bool:
    """Whether a missing tensor is one of an expert that lacks whole."""
    block, number = expert_of(name)
    return bool(number) and int(number) in facts.expert_gaps.get(block, ())


def _difference(facts: Facts, views: Mapping[str, Tensor], left_over: Iterable[str]) -> Difference:
    there = facts.tensors
    missing = tuple([name for name in views if name not in there])
    misshapen = tuple([n for n, view in views.items() if n in there and there[n].shape != view.shape])
    return Difference(len(views) - len(missing) - len(misshapen), missing, misshapen, tuple(sorted(left_over)))
