"""A width policy with the clock that it does not have itself: what a step tells it, and what its own thinking costs."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from paceline.batch import ForwardBatch
from paceline.drafters.base import Deeper
from paceline.engine.plan import Plan
from paceline.request import Request
from paceline.spec.proposal import Proposal, Verdict
from paceline.spec.width import StepFacts, WidthPolicy

KEEP_SECONDS = 5.0  # between two times that what was learned is kept: half a millisecond each
SECONDS = 0.016  # that a step of several rounds may take
_USUAL = 64  # steps since the last such one, or the first of all, within which a short one by itself is an exception


class TimedPolicy:
    """`seconds`: what the policy took for its decisions, all steps together. Of one that is not adaptive nothing is
    asked but the widths."""

    def __init__(self, policy: WidthPolicy) -> None:
        self.policy, self.seconds = policy, 0.0
        self._began = self._mark = self._thought = 0.0  # the last one: of this step's, what the policy took
        self._drafting: list[float] = []
        self._more = self._asking = False
        self._drafts: list[list[int]] | None = None  # before they were cut
        self._steps, self._prompts = 0, 0  # since what was learned last: steps, tokens of prompts that they read
        self._after = 0  # tokens of prompts that the step before read
        self._single = 0  # steps in a row of one round
        self._keep: Callable[[], None] | None = None
        self._kept = perf_counter()

    def adapt(self, policy: WidthPolicy, keep: Callable[[], None]) -> None:
        """From now on that policy. keep: writes down what it has learned, called every few seconds."""
        self.policy, self._keep = policy, keep

    def start(self) -> None:
        """A step begins."""
        self._began, self._thought = perf_counter(), 0.0

    def widths(self, ready: list[Request]) -> list[int]:
        now = perf_counter()
        found = self.policy.widths(ready)
        self._think(now)
        return found

    @property
    def rounds(self) -> int:
        """How many this step may have."""
        return 1 if self.policy.asks else 1 + self.policy.idle

    def deeper(self, widths: list[int]) -> Deeper | None:
        """Drafting begins; what the drafter asks on the way. Where nobody may draft more than once, it need not ask."""
        self._asking = self.policy.asks and max(widths, default=0) > 0
        self._drafting, self._more, self._drafts = [], True, None
        self._mark = perf_counter()
        return self._deeper if self._asking else None

    def _deeper(self, depth: int, requests: list[Request], confidences: list[float]) -> list[bool]:
        now = perf_counter()
        self._drafting.append(now - self._mark)
        more = self.policy.deeper(depth, requests, confidences)
        self._more, self._mark = any(more), self._think(now)
        return more

    def cut(self, plan: Plan, proposal: Proposal) -> Proposal:
        """Drafting is over; the drafts that are worth verifying. Trees stay as they are."""
        now = perf_counter()
        if self._more:  # a pass was made after the last question
            self._drafting.append(0.0)
        self._drafting[-1] += now - self._mark
        drafted = [len(nodes) - 1 for nodes in proposal.tokens] if self._asking and proposal.chain else []
        if any(drafted):
            kept = self.policy.cut(plan.ready, drafted)
            if kept != drafted:
                self._drafts = [nodes[1:] for nodes in proposal.tokens]
                proposal = proposal.cut(kept)
            self._think(now)
        return proposal

    def learn(self, plan: Plan, batch: ForwardBatch, verified: list[int], verdict: Verdict) -> None:
        """The step is over: what came of it, and how long it took. What the policy took is left out: it thinks most
        where it tries something, and would find all that is new slow. A round by itself, at a request's end, where most
        are one of several, takes a third longer than they do, and tells nothing of them."""
        read = sum(chunk for _, chunk in plan.reading) if plan.reading else 0
        before, self._after, self._single = self._after, read, self._single + 1
        self._steps, self._prompts = self._steps + 1, self._prompts + read
        if not self.policy.listens:
            return
        now = perf_counter()
        spent = now - self._began - sum(self._drafting) - self._thought
        context = sum(batch.context[: len(plan.ready)])
        alone = SECONDS / 2 if self._single < _USUAL else 0.0
        agreed, clean = self._agreed(verdict, verified), not (read or before)
        since = self._steps, self._prompts
        self._tell(StepFacts(verified, agreed, context, spent, self._drafting, clean, *since, alone=alone), now)

    def learn_rounds(self, widths: list[int], right: list[list[int]], context: int, spent: list[float]) -> None:
        """As `learn`, of a step of several rounds. right: of each request, how many drafts of each round; spent: the
        seconds of each, without what the host took for all of them: in the long run it is the same part of every time,
        and a trial has fewer rounds to bear it."""
        rounds, clean, self._after, self._single = len(spent), not self._after, 0, 0
        self._steps += rounds
        self.policy.skip(rounds - 1)
        if self.policy.listens:
            now = perf_counter()
            seconds = now - self._began - self._thought
            since = self._steps, self._prompts
            self._tell(StepFacts(widths, [], context, seconds, [], clean, *since, right, spent), now)

    def _tell(self, facts: StepFacts, now: float) -> None:
        self._steps = self._prompts = 0
        self.policy.learn(facts)
        if self._keep is not None and now - self._kept > KEEP_SECONDS:
            self._kept = now
            self._keep()
        self._think(now)

    def as_dict(self) -> dict[str, Any]:
        """What was decided, and the seconds that it took."""
        return self.policy.as_dict() | {"seconds": self.seconds}

    def _think(self, since: float) -> float:
        """Since then the policy was at work. Returns the time."""
        now = perf_counter()
        self.seconds += now - since
        self._thought += now - since
        return now

    def _agreed(self, verdict: Verdict, verified: list[int]) -> list[int]:
        """As in `StepFacts`; what a grammar forced is nobody's draft."""
        if self._drafts is None:
            return [min(len(path) - 1, drafts) for path, drafts in zip(verdict.paths, verified, strict=False)]
        return [_common(drafts, emitted) for drafts, emitted in zip(self._drafts, verdict.emitted, strict=False)]


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
