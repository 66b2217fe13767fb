"""Two engines on the same prompts, in turn: who is faster, and do they say the same?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from paceline.llm import LLM, Prompt
from paceline.outputs import RequestOutput
from paceline.request import SamplingParams, SpeculationStats


@dataclass(frozen=True)
class Race:
    """`rates_*[i]`: tokens per second of repeat i over all prompts, prompt reading included."""

    plain: list[RequestOutput]
    fast: list[RequestOutput]
    rates_plain: list[float]
    rates_fast: list[float]

    @property
    def same(self) -> bool:
        return all(a.outputs[0].token_ids == b.outputs[0].token_ids for a, b in zip(self.plain, self.fast, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the ratios within each repeat, so that a slow moment of the machine hits both sides."""
        return median(fast / plain for plain, fast in zip(self.rates_plain, self.rates_fast, strict=True))

    @property
    def speculation(self) -> SpeculationStats:
        total = SpeculationStats()
        for result in self.fast:
            total.add(result.outputs[0].speculation)
        return total


def race(
    plain: LLM,
    fast: LLM,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    repeats: int,
    progress: Callable[[], None] = lambda: None,
) -> Race:
    """`repeats` rounds over the prompts at batch 1; for each prompt the two run in turn, and who goes first alternates.

    `progress` is called after each prompt of each round. Without a prefix cache, or later rounds read no prompt."""
    sides = {False: plain, True: fast}
    results: dict[bool, list[RequestOutput]] = {}
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(repeats):
        seconds = {False: 0.0, True: 0.0}
        results = {False: [], True: []}
        for index, prompt in enumerate(prompts):
            for side in sorted(sides, reverse=bool((number + index) % 2)):
                began = time.perf_counter()
                results[side] += sides[side].generate([prompt], params)
                seconds[side] += time.perf_counter() - began
            progress()
        for side, spent in seconds.items():
            rates[side].append(sum(len(result.outputs[0].token_ids) for result in results[side]) / spent)
    return Race(results[False], results[True], rates[False], rates[True])
