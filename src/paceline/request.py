"""What a user asks for and what comes back: host data only, no tensor.

A request has no phase. `lag = len(tokens) - cached` says all: 1 is ready to decode, more is still reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any

from paceline.errors import UserError
from paceline.structured import StructuredOutputsParams

if TYPE_CHECKING:
    from paceline.grammar import Grammar

# Below this, dividing by the temperature overflows before it changes the choice: greedy, as in vLLM.
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens, in vLLM's and OpenAI's names.

    `temperature` 0 is greedy. `top_k` 0 or -1, `top_p` 1 and `min_p` 0 are off. `seed` None draws a fresh one, and the
    output tells it. `logprobs` is the number of top alternatives to report beside the chosen token (0: only the chosen
    one), `prompt_logprobs` the same for the prompt's tokens; `rejected_drafts` reports the draft that each token took
    the place of, and its log-probability if `logprobs` is given. One stop string may stand for a tuple of them, and any
    sequence for a tuple; `logit_bias` maps token ids to what is added to their logits (-inf forbids).
    `structured_outputs` is the form that the answer must have; it has the last word, over `min_tokens` and biases too.
    Raises `UserError` for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    max_tokens: int = 256
    min_tokens: int = 0
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    rejected_drafts: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        bias = {int(token): float(value) for token, value in (self.logit_bias or {}).items()}
        plain = {"stop": stop, "stop_token_ids": tuple(self.stop_token_ids), "logit_bias": bias or None}
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        checks = (
            (0 <= self.temperature < inf, "temperature must be 0 or more, and finite"),
            (self.top_k >= -1, "top_k must be -1 (off), 0 (off) or a count of tokens"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (0 <= self.min_p <= 1, "min_p must lie between 0 and 1"),
            (-2 <= self.presence_penalty <= 2, "presence_penalty must lie between -2 and 2"),
            (-2 <= self.frequency_penalty <= 2, "frequency_penalty must lie between -2 and 2"),
            (0 < self.repetition_penalty < inf, "repetition_penalty must be above 0, and finite"),
            (all(value < inf for value in bias.values()), "logit_bias must hold numbers below infinity"),
            (self.seed is None or 0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1"),
            (self.max_tokens >= 1, "max_tokens must be at least 1"),
            (0 <= self.min_tokens <= self.max_tokens, "min_tokens must lie between 0 and max_tokens"),
            (1 <= self.n <= 128, "n must lie between 1 and 128"),
            (self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs must lie between 0 and 20"),
            (
                self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= 20,
                "prompt_logprobs must lie between 0 and 20",
            ),
            (all(self.stop), "stop strings must not be empty"),
            (
                self.structured_outputs is None or isinstance(self.structured_outputs, StructuredOutputsParams),
                "structured_outputs takes StructuredOutputsParams(...)",
            ),
            (
                not (self.ignore_eos and self.structured_outputs),
                "ignore_eos and structured_outputs exclude each other: leave one out",
            ),
        )
        for good, sentence in checks:
            if not good:
                raise UserError(sentence + ".")

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW

    @cached_property
    def tells(self) -> bool:
        """Whether more than the tokens is told: log-probabilities or rejected drafts."""
        return self.logprobs is not None or self.rejected_drafts

    @cached_property
    def heat(self) -> float | None:
        """The temperature, 0 where the choice is greedy, if nothing but it and the seed acts on the logits; else
        None."""
        return None if self.structured_outputs is not None else self.free_heat

    @cached_property
    def free_heat(self) -> float | None:
        """The same, whether the answer has a form or not."""
        if self.min_tokens or self.logit_bias or self.has_penalties:
            return None
        if self.greedy:
            return 0.0
        return self.temperature if self.top_k <= 0 and self.top_p == 1 and self.min_p == 0 else None


FORCED = -1  # the origin of a token that a grammar forced


@dataclass
class SpeculationStats:
    """Counts of one request, or of many when added.
    `offered[j]`, `taken[j]`: drafts at position j offered and accepted; `widths[k]`: verifications of k drafts.
    `forced`: tokens that a grammar forced, drafted by nobody and all of them right."""

    verifications: int = 0
    emitted: int = 0
    offered: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    forced: int = 0

    def record(self, drafted: int, accepted: int, emitted: int, width: int | None = None) -> None:
        """One verification of `drafted` tokens in a chain, of which the first `accepted` agreed. width: the drafts in
        the pass, when there were more of them than text."""
        self.verifications += 1
        self.emitted += emitted
        width = drafted if width is None else width
        self.widths.extend([0] * (width + 1 - len(self.widths)))
        self.widths[width] += 1
        for counts, upto in ((self.offered, drafted), (self.taken, accepted)):
            counts.extend([0] * (drafted - len(counts)))
            for j in range(upto):
                counts[j] += 1

    def record_many(self, drafted: int, accepted: Sequence[int]) -> None:
        """As `record`, of several verifications of so many drafts each."""
        if not accepted:
            return
        self.verifications += len(accepted)
        self.emitted += sum(accepted) + len(accepted)
        self.widths.extend([0] * (drafted + 1 - len(self.widths)))
        self.widths[drafted] += len(accepted)
        for counts in (self.offered, self.taken):
            counts.extend([0] * (drafted - len(counts)))
        for j in range(drafted):
            self.offered[j] += len(accepted)
            self.taken[j] += sum(right > j for right in accepted)

    def add(self, other: SpeculationStats) -> None:
        self.verifications += other.verifications
        self.emitted += other.emitted
        self.forced += other.forced
        for mine, theirs in (
            (self.offered, other.offered),
            (self.taken, other.taken),
            (self.widths, other.widths),
        ):
            mine.extend([0] * (len(theirs) - len(mine)))
            for j, count in enumerate(theirs):
                mine[j] += count

    @property
    def drafted(self) -> int:
        return sum(self.offered)

    @property
    def accepted(self) -> int:
        return sum(self.taken)

    @property
    def acceptance_rate(self) -> float:
        """accepted / drafted; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens emitted per verification, bonus included; 0 before the first one."""
        return self.emitted / self.verifications if self.verifications else 0.0

    @property
    def acceptance_by_position(self) -> list[float]:
        """P(draft j accepted | offered), unconditional on the drafts before it having been accepted."""
        return [t / o if o else 0.0 for t, o in zip(self.taken, self.offered, strict=True)]

    @property
    def mean_width(self) -> float:
        """Drafts in a verification, on the average; 0 before the first one."""
        return sum(k * count for k, count in enumerate(self.widths)) / self.verifications if self.verifications else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "verifications": self.verifications,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "acceptance_rate": self.acceptance_rate,
            "acceptance_length": self.acceptance_length,
            "acceptance_by_position": self.acceptance_by_position,
            "mean_width": self.mean_width,
            "width_histogram": self.widths,
            "forced": self.forced,
        }


@dataclass(eq=False)
class Request:
    """One sequence in the engine.

    `tokens` is the prompt, then all that is committed; the last one is pending: the target has not read it yet.
    `cached` of them have been read. `blocks` is the block table; `row` is this request's row in every per-request
    tensor (-1 while it waits).
    `drafter` names whose drafts it takes (None: the engine's first drafter's).
    `origins[i]` tells who wrote generated token i: 0 the target, d > 0 an accepted draft of depth d, -1 (`FORCED`) a
    grammar that allowed nothing else.
    `prompt_logprobs[i]` is about token i + 1 of the prompt: the first one follows nothing.
    `rejected[i]`, if asked for, is the draft in the place of generated token i that the target did not choose, or None.
    """

    id: str
    tokens: list[int]
    num_prompt: int
    params: SamplingParams
    seed: int
    cached: int = 0
    blocks: list[int] = field(default_factory=list)
    row: int = -1
    num_speculative_tokens: int | None = None
    drafter: str | None = None
    finish_reason: str | None = None
    origins: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, float]] = field(default_factory=list)
    rejected: list[int | None] = field(default_factory=list)
    grammar: Grammar | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    arrival: float = 0.0
    first_token_time: float | None = None
    finish_time: float | None = None
    preemptions: int = 0
    prefix_hit_tokens: int = 0

    @property
    def lag(self) -> int:
        return len(self.tokens) - self.cached

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.num_prompt :]
