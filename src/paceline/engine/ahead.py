"""Rounds ahead of a step: where nobody has to be asked in between, several rounds of drafting and verifying are one
compiled call, and the step itself is the last of them. What the host does in a step is done once for all of them.

A round is left to the step if it might end a request, and there are none while somebody reads a prompt or might begin
to, where a token's choice needs more than its logits, a temperature and a seed, and where the policy wants to hear of
each step. Tokens come in groups of that many rounds, so that rounds of a group must not take long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from paceline.drafters.base import Drafter, Leads, Seen
from paceline.engine.plan import Plan
from paceline.engine.scheduler import Scheduler
from paceline.engine.stats import EngineStats
from paceline.engine.timed import TimedPolicy
from paceline.kernels.chain import Asked
from paceline.kernels.rounds import Batch, Gone, Rounds
from paceline.request import Request

SECONDS = 0.005  # that rounds may take, the step behind them included


@dataclass
class _Pace:
    """How long a round takes of late."""

    seconds: float = 0.0
    steps: int = 0

    def rounds(self, stats: EngineStats) -> int:
        """How many may go before a step: as long as all rounds took since this was last asked."""
        seconds, steps = sum(stats.seconds.values()), stats.steps
        each = (seconds - self.seconds) / (steps - self.steps) if steps > self.steps else SECONDS
        self.seconds, self.steps = seconds, steps
        return int(SECONDS / max(each, 1e-9)) - 1


class Ahead:
    """rounds: the target's, with the drafter's modules if it has such. most: rounds before a step."""

    def __init__(self, rounds: Rounds, drafter: Drafter, scheduler: Scheduler, most: int) -> None:
        self.rounds, self.drafter, self.scheduler, self.most = rounds, drafter, scheduler, most
        self._pace = _Pace()

    def __call__(self, plan: Plan, policy: TimedPolicy, stats: EngineStats) -> None:
        """As many rounds with the plan's widths as there may be; the plan stays good for the step behind them."""
        most = min(self._pace.rounds(stats), self.most)
        if most < 1 or not plan.ready or not serves(plan) or (most := min(most, policy.idle)) < 1:
            return
        most = self.scheduler.hold(plan, most)
        if most < 1 or (batch := self._batch(plan)) is None:
            return
        requests, told, leads = batch
        stats.lap("assemble")
        gone = self.rounds(told, most)
        stats.split(gone.seconds)
        done = len(gone.accepted[0])
        if not done:
            return
        by_row = {request.row: right for request, right in zip(requests, gone.accepted, strict=True)}
        policy.went([by_row[request.row] for request in plan.ready])
        stats.steps, stats.read = stats.steps + done, stats.read + done * sum(a.width + 1 for a in told.asked)
        places = [request.cached for request in requests]
        self.scheduler.advance(plan, requests, gone.tokens, gone.accepted)
        stats.lap("commit")
        self._tell(requests, places, leads, gone)
        stats.lap("draft")

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
        stops = [self.scheduler.stops_of(request) for request in requests]
        counts, carried = ([], None) if leads is None else (leads.counts, leads.carried)
        return requests, Batch(asked, stops, counts, carried), leads

    def _tell(self, requests: list[Request], places: list[int], leads: Leads | None, gone: Gone) -> None:
        """What the target read, as if step by step: modules have read all but what the last round brought."""
        last = [accepted[-1] + 1 for accepted in gone.accepted]
        counts = [len(tokens) - new if leads else 0 for tokens, new in zip(gone.tokens, last, strict=True)]
        if leads is not None:
            self.drafter.follow(_seen(requests, places, [0] * len(places), counts, gone), leads, gone)
        seen = _seen(requests, places, counts, list(map(len, gone.tokens)), gone)
        self.drafter.observe(replace(seen, rounds=len(gone.accepted[0])))


def serves(plan: Plan) -> bool:
    """Whether nobody reads a prompt or has just left, and logits, temperatures and seeds say which tokens come."""
    if plan.reading or plan.left:
        return False
    return all([request.params.heat is not None and not request.params.tells for request in plan.ready])


def _as_asked(request: Request) -> Asked:
    return Asked(0, request.tokens, [], [], request.blocks, request.seed, request.params.heat or 0.0)


def _seen(requests: list[Request], places: list[int], begin: list[int], end: list[int], gone: Gone) -> Seen:
    """Of each request what the target read before its new tokens number begin .. end - 1."""
    first = [place + skipped for place, skipped in zip(places, begin, strict=True)]
    at = [row + skipped for row, skipped in zip(gone.at, begin, strict=True)]
    count = [stop - start for start, stop in zip(begin, end, strict=True)]
    rows, blocks = [request.row for request in requests], [request.blocks for request in requests]
    return Seen(requests, rows, blocks, first, count, at, gone.states)
