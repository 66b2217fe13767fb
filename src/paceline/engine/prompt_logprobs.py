"""The log-probabilities of a prompt's own tokens, for requests that ask for them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from paceline.batch import ForwardBatch
from paceline.engine.plan import Plan
from paceline.sampling import top_logprobs

_ROWS = 64  # so many rows of logits at a time, however long the prompt


def score_prompts(plan: Plan, batch: ForwardBatch, hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
    """Before `commit`: appends to `prompt_logprobs` of the requests that read and want them.

    The row of token i tells of token i + 1, so the prompt's first token has none; what was read before a preemption is
    not told again. hidden [T, H] are the target's states; logits: [L, H] to [L, V].
    Example: a prompt of 5 read in chunks of 3 and 2 brings those of tokens 1, 2, 3 and then of token 4."""
    for (request, chunk), start, read in zip(
        plan.reading, batch.starts[len(plan.ready) :], batch.context[len(plan.ready) :], strict=False
    ):
        count, known = request.params.prompt_logprobs, request.prompt_logprobs
        end = min(read + chunk, request.num_prompt - 1)
        while count is not None and len(known) < end:
            stop = min(end, len(known) + _ROWS)
            rows = hidden[start + len(known) - read : start + stop - read]
            known += top_logprobs(logits(rows), request.tokens[len(known) + 1 : stop + 1], count)
