"""How often drafts are accepted, source by source: deterministic, so it is what tests and tables regress on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paceline.assets import HeldOut
from paceline.llm import LLM
from paceline.request import SamplingParams, SpeculationStats

BATCH = 16


def acceptance_by_source(
    llm: LLM, prompts: Sequence[HeldOut], params: SamplingParams, progress: Callable[[int], None] = lambda done: None
) -> dict[str, SpeculationStats]:
    """Counts per source, in the prompts' order of sources; `progress` hears how many prompts each batch finished."""
    found: dict[str, SpeculationStats] = {}
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        for prompt, result in zip(batch, llm.generate([p.content for p in batch], params), strict=True):
            stats = found.setdefault(prompt.source, SpeculationStats())
            for answer in result.outputs:
                stats.add(answer.speculation)
        progress(len(batch))
    return found


def total(parts: dict[str, SpeculationStats]) -> SpeculationStats:
    """All sources together, each draft counting the same."""
    result = SpeculationStats()
    for stats in parts.values():
        result.add(stats)
    return result
