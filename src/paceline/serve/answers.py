"""Whole answers out of deltas, and what an HTTP answer says of their cost: `usage`, with the speculation in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paceline.request import SpeculationStats
from paceline.serve.generation import Answers
from paceline.serve.messages import Finished
from paceline.serve.protocol import StreamOptions
from paceline.serve.text import Delta
from paceline.speculative_config import AUTO


@dataclass
class Whole:
    """One answer, as far as it has come."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    rejected: list[int | None] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, float]] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens += delta.tokens
        self.origins += delta.origins
        self.rejected += delta.rejected
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        self.finished = delta.finished


async def collect(answers: Answers, usage: Usage) -> list[Whole]:
    """All answers in the order of their numbers, when all have ended, and counted."""
    wholes = [Whole() for _ in range(answers.count)]
    async for delta in answers.deltas():
        usage.add(delta)
        wholes[delta.index].add(delta)
    return wholes


class Usage:
    """The tokens of all answers to a request, counted as they come."""

    def __init__(self, answers: Answers) -> None:
        self._jobs, facts = answers.jobs, answers.client.facts
        self._most = AUTO if facts.auto else facts.num_speculative_tokens
        self._generated, self._cached = 0, 0
        self._stats = SpeculationStats()

    def add(self, delta: Delta) -> None:
        self._generated += len(delta.tokens)
        if delta.finished is not None:
            self._stats.add(delta.finished.speculation)
            if delta.index % self._jobs[0].params.n == 0:  # the prompt counts once
                self._cached += delta.finished.prefix_hit_tokens

    def as_dict(self) -> dict[str, Any]:
        prompt = sum(len(job.prompt) for job in self._jobs)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._generated,
            "total_tokens": prompt + self._generated,
            "prompt_tokens_details": {"cached_tokens": self._cached},
            "speculation": self._speculation(),
        }

    def of_chunk(self, options: StreamOptions) -> dict[str, Any]:
        """What each chunk of a stream says: nothing unless asked for, and null unless asked for in every chunk."""
        if not options.include_usage:
            return {}
        return {"usage": self.as_dict() if options.continuous_usage_stats else None}

    def _speculation(self) -> dict[str, Any]:
        drafts = self._jobs[0].drafts
        tokens = self._most if drafts.tokens is None else drafts.tokens
        asked = {"drafter": drafts.drafter, "num_speculative_tokens": tokens}
        by_position = {"drafted_by_position": self._stats.offered, "accepted_by_position": self._stats.taken}
        return asked | self._stats.as_dict() | by_position


def end_fields(finished: Finished | None) -> dict[str, Any]:
    """What a choice says at its end: why, and the seed with which it can be had again."""
    return {"finish_reason": None} if finished is None else {"finish_reason": finished.reason, "seed": finished.seed}
