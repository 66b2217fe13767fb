"""From a request's fields to jobs for the engine, and from jobs to deltas: what chat and completions share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from paceline.errors import UserError
from paceline.request import SamplingParams
from paceline.serve.client import EngineClient
from paceline.serve.errors import ApiError
from paceline.serve.job import NOBODY, Drafts, Job
from paceline.serve.messages import Ready
from paceline.serve.protocol import GenerationBody, Speculation
from paceline.serve.text import AnswerText, Delta
from paceline.tokenizer import Tokenizer

# Fields that go to `SamplingParams` as they are.
SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "ignore_eos",
    "min_tokens",
    "n",
)


def sampling_params(
    body: GenerationBody,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    rejected_drafts: bool = False,
) -> SamplingParams:
    """Raises `UserError` for a value out of range."""
    bias: dict[int, float] = {}
    for token, value in body.logit_bias.items():
        if not token.isdecimal() or len(token) > 9:
            raise UserError(f"logit_bias maps token ids to numbers, and {token[:20]!r} is no token id.")
        bias[int(token)] = value
    return SamplingParams(
        **{name: getattr(body, name) for name in SAME},
        logit_bias=bias,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        structured_outputs=body.form,
        rejected_drafts=rejected_drafts,
    )


def drafts_for(asked: Speculation, facts: Ready) -> Drafts:
    """How to speculate for what a request asks. Raises `ApiError` for what this server cannot do.

    Example: on a server that drafts up to 4 with "mtp,ngram", {"drafter": "none"} is nobody and 0 tokens,
    {"drafter": "ngram", "num_speculative_tokens": 2} is as it says, and {} is mtp and None: as the engine thinks."""
    names, most, wanted = facts.drafter.split(","), facts.num_speculative_tokens, asked.num_speculative_tokens
    drafter = names[0] if asked.drafter is None else asked.drafter
    if drafter not in (*names, NOBODY):
        known = " or ".join(dict.fromkeys((*names, NOBODY)))
        raise ApiError(400, f"speculation.drafter: this server drafts with {known}; ask for that.", param="speculation")
    most = most if drafter != NOBODY else 0
    if isinstance(wanted, int) and not 0 <= wanted <= most:
        raise ApiError(
            400, f"speculation.num_speculative_tokens must lie between 0 and {most} here.", param="speculation"
        )
    if most == 0 or wanted == 0:
        return Drafts(NOBODY, 0)
    return Drafts(drafter, wanted if isinstance(wanted, int) else None)


@dataclass(frozen=True)
class Answers:
    """The jobs of one HTTP request; answer i of job j has number j * n + i, as OpenAI numbers choices."""

    jobs: list[Job]
    client: EngineClient
    tokenizer: Tokenizer
    news: asyncio.Event

    @classmethod
    def submit(
        cls,
        client: EngineClient,
        tokenizer: Tokenizer,
        prompts: list[list[int]],
        params: SamplingParams,
        drafts: Drafts,
    ) -> Answers:
        """All or none. Raises `ApiError` when the server is full."""
        client.check_room(len(prompts) * params.n)
        news = asyncio.Event()
        return cls([client.submit(prompt, params, drafts, news) for prompt in prompts], client, tokenizer, news)

    @property
    def count(self) -> int:
        return sum(job.params.n for job in self.jobs)

    def abort(self) -> None:
        for job in self.jobs:
            self.client.abort(job)

    async def deltas(self) -> AsyncIterator[Delta]:
        """What comes of all jobs, as it comes. Raises `ApiError` when one of them fails, and aborts the others."""
        texts = [self._text(number) for number in range(self.count)]
        waiting = dict(enumerate(self.jobs))
        try:
            while waiting:
                await self.news.wait()
                self.news.clear()
                for number, job in list(waiting.items()):
                    pieces = job.take()
                    if job.ended:  # as of now: what follows may wait for the client
                        del waiting[number]
                    for piece in pieces:
                        yield texts[number * job.params.n + piece.index].push(piece)
        finally:
            self.abort()

    def _text(self, number: int) -> AnswerText:
        job = self.jobs[number // self.jobs[0].params.n]
        return AnswerText(self.tokenizer, self.client.facts, job, number)
