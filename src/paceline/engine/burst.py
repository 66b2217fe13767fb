"""A step of several rounds: where nobody has to be asked in between, drafting and verifying go on in one compiled call.
What the host does in a step is done once for all of them.

There is none while somebody reads a prompt or might begin to, where a token's choice needs more than its logits, a
temperature and a seed, or where the policy may change its mind. It is over when a request ends. Tokens come in groups
of so many rounds, which must not take long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from paceline.drafters.base import Drafter, Leads, Seen
from paceline.engine.plan import Plan, StepOutput
from paceline.engine.scheduler import Scheduler
from paceline.engine.stats import EngineStats
from paceline.engine.timed import SECONDS, TimedPolicy
from paceline.kernels.chain import Asked
from paceline.kernels.rounds import Batch, Outcome, Rounds
from paceline.request import Request


@dataclass
class _Pace:
    """How long a round takes of late. reads: those since this was last asked read prompts, and are no measure."""

    seconds: float = 0.0
    steps: int = 0
    each: float = SECONDS
    reads: bool = False

    def rounds(self, stats: EngineStats) -> int:
        """How many a step may have: in as much time as each took since this was last asked."""
        seconds, steps = sum(stats.seconds.values()), stats.steps
        if not self.reads:
            self.each = (seconds - self.seconds) / (steps - self.steps) if steps > self.steps else SECONDS
        self.seconds, self.steps = seconds, steps
        return int(SECONDS / max(self.each, 1e-9))


class Burst:
    """rounds: the target's, with the drafter's modules if it has such. most: rounds of a step."""

    def __init__(self, rounds: Rounds, drafter: Drafter, scheduler: Scheduler, most: int) -> None:
        self.rounds, self.drafter, self.scheduler, self.most = rounds, drafter, scheduler, most
        self._pace = _Pace()

    def __call__(self, plan: Plan, policy: TimedPolicy, stats: EngineStats) -> list[StepOutput] | None:
        """All of a step with the plan's widths; None where it has to be one round, and nothing was done."""
        most = min(self._pace.rounds(stats), self.most)
        self._pace.reads = bool(plan.reading)
        if most <= 1 or not serves(plan) or (most := min(most, policy.rounds)) <= 1:
            return None
        most = self.scheduler.hold(plan, most)
        if most <= 1 or (found := self._batch(plan)) is None:
            return None
        requests, batch, leads = found
        stats.lap("assemble")
        outcome = self.rounds(batch, most)
        stats.split(outcome.seconds)
        return self._end(plan, policy, stats, requests, leads, outcome)

    def _end(
        self,
        plan: Plan,
        policy: TimedPolicy,
        stats: EngineStats,
        requests: list[Request],
        leads: Leads | None,
        outcome: Outcome,
    ) -> list[StepOutput]:
        """What follows a step, of so many rounds."""
        seen, places = _as_before(requests, outcome), [request.cached for request in plan.ready]
        right = {request.row: rights for request, rights in zip(requests, outcome.accepted, strict=True)}
        rights = [right[request.row] for request in plan.ready]
        outputs = self.scheduler.commit_rounds(plan, requests, outcome.tokens, outcome.accepted)
        rounds, rows = len(rights[0]), len(plan.ready) + sum(plan.widths)
        stats.count_step(rounds * rows, sum(len(output.tokens) for output in outputs), steps=rounds)
        stats.lap("commit")
        self._tell(seen, leads, outcome)
        stats.lap("draft")
        policy.learn_rounds(plan.widths, rights, sum(places), outcome.each)
        stats.lap("commit")
        return outputs

    def _batch(self, plan: Plan) -> tuple[list[Request], Batch, Leads | None] | None:
        """The requests in order of falling width; None where the drafter would have to do more than its modules do."""
        leads = None
        if any(plan.widths):
            leads = self.drafter.leads(plan.ready, plan.widths)
            if leads is None:
                return None
        drafting = leads.requests if leads is not None else []
        rest = [request for request, width in zip(plan.ready, plan.widths, strict=True) if not width]
        asked = [*(leads.asked if leads is not None else ()), *map(_as_asked, rest)]
        requests = [*drafting, *rest]
        stops, left = zip(*map(self.scheduler.ends_of, requests), strict=True)
        counts, carried = ([], None) if leads is None else (leads.counts, leads.carried)
        return requests, Batch(asked, stops, left, counts, carried), leads

    def _tell(self, seen: Seen, leads: Leads | None, outcome: Outcome) -> None:
        """What the target read, as if step by step: modules have read all but what the last round brought. seen: all
        of it, also what ended requests did not keep."""
        kept = [request.cached - first for request, first in zip(seen.requests, seen.first, strict=True)]
        before = [0] * len(kept)
        if leads is not None:
            pairs = zip(outcome.tokens, outcome.accepted, strict=True)
            before = [len(tokens) - accepted[-1] - 1 for tokens, accepted in pairs]
            first = replace(_part(seen, [0] * len(kept), before), rounds=0)
            self.drafter.follow(first, leads, outcome)
        self.drafter.observe(_part(seen, before, kept))


def serves(plan: Plan) -> bool:
    """Whether nobody reads a prompt or has just left, and logits, temperatures and seeds say which tokens come."""
    if not plan.ready or plan.reading or plan.left:
        return False
    return all([request.params.heat is not None and not request.params.tells for request in plan.ready])


def _as_asked(request: Request) -> Asked:
    return Asked(0, request.tokens, [], [], request.blocks, request.seed, request.params.heat or 0.0)


def _as_before(requests: list[Request], outcome: Outcome) -> Seen:
    """What the target read, with rows and block tables as they were."""
    rows, blocks = [request.row for request in requests], [request.blocks for request in requests]
    first, count = [request.cached for request in requests], list(map(len, outcome.tokens))
    return Seen(requests, rows, blocks, first, count, outcome.at, outcome.states, len(outcome.accepted[0]))


def _part(seen: Seen, begin: list[int], end: list[int]) -> Seen:
    """Of each request its states number begin .. end - 1."""
    return replace(
        seen,
        first=[first + skipped for first, skipped in zip(seen.first, begin, strict=True)],
        at=[row + skipped for row, skipped in zip(seen.at, begin, strict=True)],
        count=[stop - start for start, stop in zip(begin, end, strict=True)],
    )
