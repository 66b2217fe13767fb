"""What comes back from a generation, in the shape that users of other engines know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paceline.request import Request, SpeculationStats


@dataclass(frozen=True)
class Timing:
    """Milliseconds from arrival to the first token, mean milliseconds per further token, tokens per second overall."""

    ttft_ms: float
    tpot_ms: float
    tokens_per_second: float

    @staticmethod
    def of(request: Request) -> Timing:
        """Of a finished request; all zero when it ended without a token."""
        first, last, count = request.first_token_time, request.finish_time, len(request.generated)
        if first is None or last is None or not count:
            return Timing(0.0, 0.0, 0.0)
        tpot = (last - first) / (count - 1) if count > 1 else 0.0
        return Timing(1e3 * (first - request.arrival), 1e3 * tpot, count / max(last - request.arrival, 1e-9))


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. `text` ends before a stop string; `token_ids` are all that were generated.

    `origins[i]` tells who wrote token i: 0 the target, d > 0 an accepted draft of depth d, -1 a grammar. `seed` is the
    one that was used, so that an answer without a given seed can be had again. `rejected[i]`, when asked for: the draft
    in the place of token i that the target did not choose, or None. `logprobs`, when asked for: one {token:
    log-probability} a token. `finish_reason` is "stop" or "length" ("abort" when cancelled, "error" where a grammar led
    nowhere). `prefix_hit_tokens`: how many tokens of the prompt the cache held."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    seed: int
    origins: list[int]
    logprobs: list[dict[int, float]] | None
    rejected: list[int | None] | None
    speculation: SpeculationStats
    timing: Timing
    prefix_hit_tokens: int
    preemptions: int

    @staticmethod
    def of(index: int, request: Request, text: str) -> CompletionOutput:
        """Of a finished request."""
        assert request.finish_reason is not None
        return CompletionOutput(
            index=index,
            text=text,
            token_ids=request.generated,
            finish_reason=request.finish_reason,
            seed=request.seed,
            origins=request.origins,
            logprobs=None if request.params.logprobs is None else request.logprobs,
            rejected=request.rejected if request.params.rejected_drafts else None,
            speculation=request.stats,
            timing=Timing.of(request),
            prefix_hit_tokens=request.prefix_hit_tokens,
            preemptions=request.preemptions,
        )


@dataclass(frozen=True)
class RequestOutput:
    """All answers to one prompt, `params.n` of them. `prompt` is as it was given; None when it was token ids.

    `prompt_logprobs`, when asked for: one {token: log-probability} a token of the prompt, None for the first one."""

    prompt: str | list[dict[str, str]] | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, float] | None] | None = None


@dataclass(frozen=True)
class Delta:
    """What one step added to a streamed answer; the last one carries `finished`."""

    text: str
    token_ids: list[int]
    origins: list[int]
    finished: CompletionOutput | None = None


def as_json(
    prompt: RequestOutput, answer: CompletionOutput, drafter: str, num_speculative_tokens: int | str
) -> dict[str, Any]:
    """One answer as plain data, in the field names of `paceline generate --json`."""
    setting = {"drafter": drafter, "num_speculative_tokens": num_speculative_tokens}
    counts = {"prompt_tokens": len(prompt.prompt_token_ids), "completion_tokens": len(answer.token_ids)}
    row: dict[str, Any] = {
        "prompt": prompt.prompt,
        "prompt_token_ids": prompt.prompt_token_ids,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "usage": counts,
        "speculation": setting | answer.speculation.as_dict(),
        "timing": vars(answer.timing),
        "seed": answer.seed,
        "index": answer.index,
    }
    return row if answer.logprobs is None else row | {"logprobs": answer.logprobs}
