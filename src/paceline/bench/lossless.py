"""Promise 1, measured: the text depends on model, prompt, sampling parameters and seed, and on nothing else.

Every arm generates the same prompts under other circumstances (drafter, draft length, batch size, prefix cache, chunk
size, too few blocks) and must give the token ids of plain decoding at batch 1 without a cache. Drafter x length x batch
x sampling is a full cross product; the circumstances of the cache take turns over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from paceline.drafters import drafter_names
from paceline.llm import LLM, Prompt
from paceline.outputs import RequestOutput
from paceline.request import SamplingParams
from paceline.speculative_config import AUTO


@dataclass(frozen=True)
class Circumstance:
    """`chunk`: tokens a step at most, which cuts prompts. `tight`: so few blocks that requests are preempted."""

    name: str
    block_size: int = 16
    prefix_cache: bool = False
    chunk: int = 512
    tight: bool = False


CIRCUMSTANCES = (
    Circumstance("plain"),
    Circumstance("prefix hits", block_size=4, prefix_cache=True),
    Circumstance("chunks of 24", chunk=24),
    Circumstance("too few blocks", block_size=4, tight=True),
    Circumstance("prefix hits, chunks of 40, too few blocks", block_size=4, prefix_cache=True, chunk=40, tight=True),
)


@dataclass(frozen=True)
class Arm:
    drafter: str
    num_speculative_tokens: int | str
    batch: int
    params: SamplingParams
    circumstance: Circumstance

    def __str__(self) -> str:
        sampling = "T=0" if self.params.temperature == 0 else f"T={self.params.temperature} seed={self.params.seed}"
        return (
            f"{self.drafter} k={self.num_speculative_tokens} batch={self.batch} {sampling} ({self.circumstance.name})"
        )


@dataclass(frozen=True)
class Difference:
    """`gap`: how far the reference's best token stood above its second there, in log-probability. A tiny one points at
    arithmetic that is not row-invariant, a large one at a wrong cache or a wrong position."""

    arm: Arm
    prompt: int
    position: int
    gap: float


@dataclass(frozen=True)
class Size:
    """How much to run: held-out prompts, tokens a prompt, seeds at temperature 0.8, draft lengths, batch sizes."""

    prompts: int
    max_tokens: int
    seeds: int
    lengths: tuple[int | str, ...]
    batches: tuple[int, ...]


# What texts are compared with: one request at a time, a token a step.
PLAIN: dict[str, Any] = {
    "drafter": "none",
    "max_num_seqs": 1,
    "enable_prefix_caching": False,
    "num_scheduler_steps": 1,
}
FULL = Size(prompts=200, max_tokens=48, seeds=2, lengths=(1, 2, 3, 5, AUTO), batches=(1, 4, 16))
QUICK = Size(prompts=6, max_tokens=32, seeds=1, lengths=(1, 3), batches=(1, 4))


@dataclass
class Report:
    """`prefix_hit_tokens` and `preemptions` prove that the circumstances came about."""

    arms: int = 0
    texts: int = 0
    tokens: int = 0
    accepted: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    differences: list[Difference] = field(default_factory=list)


def matrix(size: Size) -> list[Arm]:
    """All arms, for every drafter there is."""
    guessing = [name for name in drafter_names() if name != "none"]
    drafters: list[tuple[str, int | str]] = [("none", 0), *product(guessing, size.lengths)]
    cases = product(enumerate(drafters), enumerate(size.batches), enumerate(samplings(size)))
    return [
        Arm(drafter, k, batch, params, CIRCUMSTANCES[(d + b + s) % len(CIRCUMSTANCES)])
        for (d, (drafter, k)), (b, batch), (s, params) in cases
    ]


def samplings(size: Size) -> list[SamplingParams]:
    """Greedy, and temperature 0.8 with every seed."""
    greedy = SamplingParams(max_tokens=size.max_tokens)
    return [greedy, *(replace(greedy, temperature=0.8, seed=seed) for seed in range(size.seeds))]


def verify_lossless(
    llm: LLM, prompts: Sequence[Prompt], arms: Sequence[Arm], progress: Callable[[str], None] = lambda arm: None
) -> Report:
    """Runs all arms on the weights of `llm`; `progress` hears of every arm before it runs."""
    reference = llm.with_options(**PLAIN)
    expected: dict[str, list[RequestOutput]] = {}
    report = Report()
    for arm in arms:
        progress(str(arm))
        key = repr(arm.params)
        if key not in expected:
            expected[key] = reference.generate(prompts, arm.params)
        found = run_arm(llm, arm, prompts, expected[key], report)
        report.differences += differences(reference, arm, prompts, expected[key], found)
    return report


def run_arm(
    llm: LLM, arm: Arm, prompts: Sequence[Prompt], expected: Sequence[RequestOutput], report: Report
) -> list[RequestOutput]:
    """The arm's answers, counted in `report`. With a prefix cache every prompt has been read once before."""
    engine = llm.with_options(**engine_options(arm, expected))
    if arm.circumstance.prefix_cache:
        engine.generate(prompts, replace(arm.params, max_tokens=1))
    found = engine.generate(prompts, arm.params)
    answers = [result.outputs[0] for result in found]
    report.arms += 1
    report.texts += len(answers)
    report.tokens += sum(len(answer.token_ids) for answer in answers)
    report.accepted += sum(answer.speculation.accepted for answer in answers)
    report.prefix_hit_tokens += sum(answer.prefix_hit_tokens for answer in answers)
    report.preemptions += sum(answer.preemptions for answer in answers)
    return found


def engine_options(arm: Arm, expected: Sequence[RequestOutput]) -> dict[str, Any]:
    """As `EngineConfig` takes them. Tight: room for the longest request alone."""
    where = arm.circumstance
    options: dict[str, Any] = {
        "drafter": arm.drafter,
        "num_speculative_tokens": arm.num_speculative_tokens,
        "max_num_seqs": arm.batch,
        "block_size": where.block_size,
        "enable_prefix_caching": where.prefix_cache,
        "max_num_batched_tokens": max(where.chunk, arm.batch),
    }
    if where.tight:
        longest = max(len(result.prompt_token_ids) for result in expected) + arm.params.max_tokens
        options |= {"max_model_len": longest, "num_blocks": -(-longest // where.block_size)}
    return options


def differences(
    reference: LLM,
    arm: Arm,
    prompts: Sequence[Prompt],
    expected: Sequence[RequestOutput],
    found: Sequence[RequestOutput],
) -> Iterator[Difference]:
    """The first difference of each text."""
    for index, (one, other) in enumerate(zip(expected, found, strict=True)):
        a, b = one.outputs[0].token_ids, other.outputs[0].token_ids
        if a != b:
            position = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            yield Difference(arm, index, position, top2_gap(reference, prompts[index], arm.params, position))


def top2_gap(reference: LLM, prompt: Prompt, params: SamplingParams, position: int) -> float:
    """Of the plain run's log-probabilities at generated token `position`; not a number where it had already ended."""
    again = reference.generate([prompt], replace(params, logprobs=2, max_tokens=position + 1))[0].outputs[0]
    if not again.logprobs or len(again.logprobs) <= position:
        return float("nan")
    best, second = sorted(again.logprobs[position].values(), reverse=True)[:2]
    return best - second
