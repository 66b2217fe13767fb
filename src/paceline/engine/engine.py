"""The engine: one kind of step, in eight lines. It names no concrete drafter and no concrete model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from paceline.batch import ForwardBatch
from paceline.drafters.base import Drafter
from paceline.engine.admit import NOBODY, Limits, chosen_drafter, make_requests
from paceline.engine.assemble import accepted_slots, assemble, offered, seen, taken
from paceline.engine.burst import Burst
from paceline.engine.canary import Canary
from paceline.engine.plan import StepOutput
from paceline.engine.prompt_logprobs import score_prompts
from paceline.engine.scheduler import Scheduler
from paceline.engine.stats import EngineStats
from paceline.engine.stop import Decoder, Ending, TextStream
from paceline.engine.timed import TimedPolicy
from paceline.grammar import Grammars
from paceline.inference import inference
from paceline.request import Request, SamplingParams
from paceline.spec.forced import with_forced
from paceline.spec.proposal import Proposal, Verdict

Verify = Callable[[Proposal, Tensor, list[Request]], Verdict]


class MovablePool(Protocol):
    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies what lies in the slots `source` [M] to `target` [M], as if all were read before any is written."""

    def preallocate(self) -> None: ...


class Target(Protocol):
    """A model with its pool: tokens in, states after the final norm [T, H] out."""

    @property
    def pool(self) -> MovablePool: ...

    def __call__(self, batch: ForwardBatch) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Engine:
    """Continuous batching with speculation. Not thread-safe: `add_request` and `abort` are called between steps."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        scheduler: Scheduler,
        verify: Verify,
        limits: Limits,
        eos_token_ids: Sequence[int] = (),
        device: torch.device | str | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        """grammars: compiles structured outputs, for requests that ask for them."""
        self.target, self.drafter, self.scheduler, self.verify = target, drafter, scheduler, verify
        self.limits, self.eos_token_ids = limits, tuple(eos_token_ids)
        self.device = None if device is None or torch.device(device).type == "cpu" else device  # None: nothing to copy
        self.grammars = grammars
        self.stats, self.canary = EngineStats(draft_quantization=drafter.quantization), Canary(drafter.suspects)
        self.policy = TimedPolicy(scheduler.policy)
        self.stats.policy, scheduler.widths = self.policy.as_dict, self.policy.widths
        self.burst: Burst | None = None

    def preallocate(self) -> None:
        """Takes the memory of all KV blocks before the first request, so that none waits for it and its use is flat."""
        for pool in (self.target.pool, *self.drafter.pools):
            pool.preallocate()

    def add_request(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        *,
        decoder: Callable[[], Decoder] | None = None,
        num_speculative_tokens: int | None = None,
        drafter: str | None = None,
    ) -> list[Request]:
        """Queues `params.n` requests for one prompt. decoder: makes what turns ids into text; stop strings need it.
        drafter: one of this engine's, or "none"; None is the first. Who asks for "none" or for 0 tokens gets one token
        a step; for who does not, what a grammar forces is checked in one pass, whether anybody drafts here or not.

        Raises `UserError` for what cannot be done; nothing is queued then."""
        self.limits.check(prompt, params, num_speculative_tokens)
        assert decoder is not None or not params.stop, "stop strings need a decoder"
        drafts = 0 if drafter == NOBODY else num_speculative_tokens
        drafter = chosen_drafter(drafter, self.drafter.name)
        requests = make_requests(request_id, prompt, params, drafts, self.grammars, drafter)
        texts = [TextStream(decoder(), params.stop) if decoder is not None else None for _ in requests]
        limit = self.limits.max_model_len
        self.scheduler.add(
            requests,
            [Ending(r, self.eos_token_ids, limit, text) for r, text in zip(requests, texts, strict=True)],
        )
        return requests

    def abort(self, request_id: str) -> bool:
        """Ends a request between two steps, with finish reason "abort"; False when it is not here (any more).

        request_id: as in the `Request` (each of n samples has its own). No step reports it: its caller knows."""
        request = self.scheduler.abort(request_id)
        if request is not None:
            self._count_finished(request)
        return request is not None

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    @inference
    def step(self) -> list[StepOutput]:
        """One pass of the target over everyone who has something to read; what came of it."""
        lap, policy = self.stats.lap, self.policy
        self.stats.start()
        policy.start()
        plan = self.scheduler.plan()
        lap("schedule")
        if self.burst is not None and (found := self.burst(plan, policy, self.stats)) is not None:
            self._count_ends(found)
            return found
        proposal = policy.cut(plan, self.drafter.propose(plan.ready, plan.widths, policy.deeper(plan.widths)))
        proposal = with_forced(proposal, plan.ready, plan.rooms)
        for row in plan.left:
            self.drafter.forget(row)
        lap("draft")
        if not plan.requests:
            return []
        proposal = proposal.join([request.tokens[-1] for request in plan.ending])
        batch = assemble(plan, proposal, self.scheduler.allocator.block_size, self.device)
        lap("assemble")
        hidden = self.target(batch)
        logits = self.target.logits(taken(batch, hidden)) if plan.verified else None
        score_prompts(plan, batch, hidden, self.target.logits)
        lap("target")
        verdict = self.verify(proposal, logits, plan.verified) if logits is not None else Verdict([], [])
        if batch.tree is not None:
            self.target.pool.move(*accepted_slots(batch, verdict))
        lap("verify")
        verified = offered(plan, proposal)
        outputs = self.scheduler.commit(plan, verified, verdict)
        self._count(batch, outputs)
        lap("commit")
        self.drafter.observe(seen(plan, batch, hidden, verdict))
        lap("draft")
        policy.learn(plan, batch, verified, verdict)
        lap("commit")
        return outputs

    def _count(self, batch: ForwardBatch, outputs: list[StepOutput]) -> None:
        self.stats.count_step(batch.starts[-1], sum(len(output.tokens) for output in outputs))
        self._count_ends(outputs)

    def _count_ends(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            if output.request.finish_reason is not None:
                self._count_finished(output.request)

    def _count_finished(self, request: Request) -> None:
        self.stats.count_finished(request)
        self.canary.look(self.stats.speculation)
