"""From what a user asks to requests: checked here, in one place, before anything is queued."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import blake2b
from time import perf_counter

from paceline.errors import UserError
from paceline.grammar import Grammars
from paceline.request import Request, SamplingParams
from paceline.sampling import check_token_ids

NOBODY = "none"  # the drafter of a request that wants no drafts


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask of this engine. max_model_len counts the prompt and all that is generated."""

    max_model_len: int
    vocab_size: int
    max_speculative_tokens: int

    def check(self, prompt: list[int], params: SamplingParams, num_speculative_tokens: int | None) -> None:
        """Raises `UserError` for what this engine cannot do."""
        if not prompt:
            raise UserError("The prompt is empty; give at least one token.")
        if len(prompt) >= self.max_model_len:
            raise UserError(
                f"The prompt has {len(prompt)} tokens, but the context holds {self.max_model_len}, answer included: "
                f"shorten the prompt to at most {self.max_model_len - 1} tokens or raise max_model_len."
            )
        if not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            raise UserError(f"The prompt has token ids that the model lacks; they run from 0 to {self.vocab_size - 1}.")
        check_token_ids(params, self.vocab_size)
        if num_speculative_tokens is not None and not 0 <= num_speculative_tokens <= self.max_speculative_tokens:
            raise UserError(
                f"num_speculative_tokens is {num_speculative_tokens}, but this engine drafts 0 to "
                f"{self.max_speculative_tokens}: choose one of these."
            )


def chosen_drafter(asked: str | None, names: str) -> str:
    """Whose drafts a request takes, of an engine's drafters in one word. Raises `UserError` for somebody else.

    Example: of "a,b" None is a, b is b."""
    known = names.split(",")
    if asked not in (None, NOBODY, *known):
        offered = " or ".join(dict.fromkeys((*known, NOBODY)))
        raise UserError(f"drafter {asked!r} does not work here; this engine drafts with {offered}.")
    return asked or known[0]


def make_requests(
    request_id: str,
    prompt: list[int],
    params: SamplingParams,
    num_speculative_tokens: int | None = None,
    grammars: Grammars | None = None,
    drafter: str | None = None,
) -> list[Request]:
    """`params.n` requests with the same prompt, ids `request_id` (n = 1) or `request_id/0`, `request_id/1`, ...

    Sample 0 has the seed that was asked for, so that it is the answer of n = 1; the other seeds are derived from it.
    grammars: compiles structured outputs. Raises `UserError` for one that cannot be used."""
    asked = params.structured_outputs
    assert grammars is not None or asked is None, "structured outputs need grammars"
    seed = secrets.randbits(63) if params.seed is None else params.seed
    return [
        Request(
            id=request_id if params.n == 1 else f"{request_id}/{index}",
            tokens=list(prompt),
            num_prompt=len(prompt),
            params=params,
            seed=derived_seed(seed, index),
            num_speculative_tokens=num_speculative_tokens,
            drafter=drafter,
            grammar=None if grammars is None or asked is None else grammars.start(asked),
            arrival=perf_counter(),
        )
        for index in range(params.n)
    ]


def derived_seed(seed: int, index: int) -> int:
    """The seed of parallel sample `index`: the seed itself for 0, else 63 bits of a hash of both."""
    if index == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed}/{index}".encode(), digest_size=8).digest(), "big") >> 1
