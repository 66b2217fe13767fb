"""Adaptive width: every step drafts and verifies what brings the most tokens a second over the whole batch.

    rate = (sum over requests of 1 + S_1 + ... + S_k) / (pass of all rows + drafting of every depth)

S_j is the probability that a request's first j drafts are accepted (`survival`), the seconds come from a measured table
(`cost`), and the best set is found over all budgets (`allocate`). ALL drafts are paid for, accepted or not. The choice
is made three times in a step, each time with what is known by then: before drafting; after each depth, when the
confidence of the drafts is known; and before verification, when drafting is paid for and only rows cost. The first
choice fixes the rate that further drafts have to be worth. Whether it was right is measured (`referee`).

Prompts that are read in the same pass are left out: what they cost is spent anyhow, and a row more costs what it does
without them. Counted, they would make tokens look slow, and time cheap.

Where nothing is worth drafting, one request drafts now and then: two thousandths of the time go into finding out
whether that is still so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from paceline.request import Request
from paceline.spec.allocate import Group, allocate, weighted
from paceline.spec.cost import Costs, CostTable
from paceline.spec.referee import Referee
from paceline.spec.survival import History, Kind, Survival, confidence_bin
from paceline.spec.width import StepFacts

# Drafting begins when it promises so much more than none, and goes on with less. Beside noise they cover what the table
# does not hold: the policy itself, and modules that read prompts.
_MARGIN_OFF, _MARGIN_ON = 1.08, 1.05
_BEYOND_DOUBT = 1.4  # a promise that no error of the table breaks
_PROBE_SHARE = 0.002  # of the time, for drafts that are not expected to pay
_ANEW = 4  # steps with single drafts between two decisions
_UNASKED = 32  # steps without drafts between two decisions whether that is still right
_REFRESH, _LEARNING = 8, 128  # steps for which sums are kept; first steps whose costs are all learned, later 2 in 8


@dataclass
class Decisions:
    """Steps with drafts and without, changes from one to the other, drafts made but not verified, probes."""

    steps_on: int = 0
    steps_off: int = 0
    switches: int = 0
    cut: int = 0
    probes: int = 0


@dataclass
class _Step:
    """What is known of the step being decided. Seconds: as `allocate` takes them, from no draft on."""

    histories: list[History]
    passes: list[float]
    drafts: list[list[float]]
    rate: float = 0.0
    made: int = 0
    probe: Request | None = None


class AdaptiveWidth:
    """A `WidthPolicy`. most: drafts at a time. latency_weight 0 counts tokens, 1 counts the logarithm of each
    request's tokens, so that slow requests are not left behind.

    A request with `num_speculative_tokens` of its own gets just so many."""

    adaptive = True

    def __init__(self, table: CostTable, most: int, latency_weight: float = 0.0) -> None:
        self.costs, self.survival, self.most = Costs(table), Survival(most), most
        self.latency_weight, self.decisions = latency_weight, Decisions()
        self._kept: dict[tuple[int, int], tuple[list[float], list[list[float]]]] = {}
        self._gains: dict[tuple[Kind, int, tuple[int, ...]], list[float]] = {}
        self._steps, self._on, self._credit = 0, True, 0.0
        self._step: _Step | None = None
        self._referee = Referee()
        self._resting, self._asking = 0, 0.0  # requests for which nothing was worth drafting; seconds of a probe
        self._last: tuple[list[Request], list[int]] = [], []  # who was given a draft, where nobody was given two
        self._drafted: list[int] = []  # requests that made draft number j + 1 in this step

    # -- the three choices

    def widths(self, ready: list[Request]) -> list[int]:
        if self._rests(ready):
            return [0] * len(ready)
        if self._stands(ready):
            return list(self._last[1])
        step = self._begin(ready)
        free = [r for r, request in enumerate(ready) if request.num_speculative_tokens is None]
        found = [request.num_speculative_tokens or 0 for request in ready]
        groups, members = self._groups([(r, step.histories[r]) for r in free], 0)
        forced = sum(found)
        best = allocate(groups, step.passes[forced:], step.drafts, float(len(ready)))
        step.rate = best.score
        drafting = best.score > best.idle * (_MARGIN_ON if self._on else _MARGIN_OFF)
        if drafting and best.score < best.idle * _BEYOND_DOUBT:
            drafting = self._referee.allows(len(ready))
        self._switch(drafting or forced > 0)
        if drafting:
            for taken, rows in zip(best.taken, members, strict=True):
                for i, r in enumerate(rows):
                    width = sum(count > i for count in taken)
                    # Room for drafts that turn out sure; a single draft is not worth asking after.
                    found[r] = width if width < 2 else min(self.most, width + 2)
        elif free and self._credit > self._price(step):
            self._probe(step, ready, found, free[self._steps % len(free)])
        self._resting, self._asking = 0 if any(found) else len(ready), self._price(step)
        self._drafted = [sum(width > 0 for width in found)]
        self._last = (list(ready), found) if max(found, default=0) == 1 and step.probe is None else ([], [])
        return list(found)

    def deeper(self, depth: int, requests: list[Request], confidences: list[float]) -> list[bool]:
        step = self._step
        assert step is not None, "`widths` comes first"
        histories = [self.survival.history(request) for request in requests]
        for history, confidence in zip(histories, confidences, strict=True):
            history.bins.append(confidence_bin(confidence))
        step.made += len(requests)
        more = [(request.num_speculative_tokens or 0) > depth for request in requests]
        if depth < self.most:
            free = [(i, h) for i, h in enumerate(histories) if requests[i].num_speculative_tokens is None]
            groups, members = self._groups(free, depth)
            best = allocate(groups, step.passes[step.made :], step.drafts[depth:], 0.0, step.rate)
            for taken, rows in zip(best.taken, members, strict=True):
                for i in rows[: taken[0]]:
                    more[i] = True
        if any(more):
            self._drafted.append(sum(more))
        return more

    def cut(self, requests: list[Request], drafted: list[int]) -> list[int]:
        step = self._step
        assert step is not None, "`widths` comes first"
        kept = list(drafted)
        groups, owners = [], []
        for r, (request, width) in enumerate(zip(requests, drafted, strict=True)):
            if width and request.num_speculative_tokens is None and request is not step.probe:
                history = step.histories[r]
                gains = self._prospects(history.kind, history.level, tuple(history.bins))
                groups.append(Group(gains[:width], 1))
                owners.append(r)
        if not groups:
            return kept
        base = sum(drafted) - sum(drafted[r] for r in owners)
        free = [[0.0] * (len(groups) + 1)] * max(drafted)
        best = allocate(groups, step.passes[base:], free, 0.0, step.rate)
        for taken, r in zip(best.taken, owners, strict=True):
            kept[r] = sum(taken)
        self.decisions.cut += sum(drafted) - sum(kept)
        return kept

    # -- what came of it

    def learn(self, facts: StepFacts) -> None:
        self._credit += _PROBE_SHARE * facts.seconds
        tokens = len(facts.verified) + sum(map(min, facts.verified, facts.agreed))
        if facts.rows == len(facts.verified) + sum(facts.verified):  # no prompts
            self._referee.learn(len(facts.verified), any(facts.verified), tokens, facts.seconds + sum(facts.drafting))
        if self._step is None:  # nothing was asked
            return
        histories, self._step = self._step.histories, None
        for history, verified, agreed in zip(histories, facts.verified, facts.agreed, strict=True):
            self.survival.learn(history, verified, agreed)
        if histories and (self._steps < _LEARNING or self._steps % _REFRESH < 2):
            self.costs.learn_pass(len(histories), facts.rows - len(histories), facts.context, facts.seconds)
            for depth, (count, seconds) in enumerate(zip(self._drafted, facts.drafting, strict=False)):
                if count and any(facts.verified):
                    self.costs.learn_draft(depth, count, seconds)

    def as_dict(self) -> dict[str, Any]:
        return {"num_speculative_tokens": "auto", "most": self.most, **asdict(self.decisions)}

    # -- parts

    def _rests(self, ready: list[Request]) -> bool:
        """Whether to go on without drafts, unasked, for some steps of a batch as large as the one that was judged."""
        rests = (
            len(ready) == self._resting
            and (self._steps + 1) % _UNASKED != 0
            and self._credit <= self._asking
            and all(request.num_speculative_tokens is None for request in ready)
        )
        if rests:
            self._steps += 1
            self._switch(False)
            self._drafted = [0]
        return rests

    def _stands(self, ready: list[Request]) -> bool:
        """Whether single drafts for these very requests go on for some steps, unasked: deciding costs a small model
        more than deciding afresh brings."""
        last = self._last[0]
        stands = (
            len(ready) == len(last) > 0
            and (self._steps + 1) % _ANEW != 0
            and all(one is other for one, other in zip(ready, last, strict=True))
        )
        if stands:
            self._steps += 1
            self._switch(True)
        return stands

    def _begin(self, ready: list[Request]) -> _Step:
        histories = [self.survival.history(request) for request in ready]
        for history in histories:
            if history.bins:
                history.bins = []
        context = sum(request.cached for request in ready)
        self._steps += 1
        if self._steps % _REFRESH == 0:
            self._kept.clear()
            self._gains.clear()
        key = len(ready), context // 256
        if key not in self._kept:
            most = len(ready) * self.most
            drafts = [self.costs.drafts(depth, len(ready)) for depth in range(self.most)]
            self._kept[key] = self.costs.passes(len(ready), 0, context, most), drafts
        self._step = _Step(histories, *self._kept[key])
        return self._step

    def _groups(self, histories: list[tuple[int, History]], depth: int) -> tuple[list[Group], list[list[int]]]:
        """Requests with the same prospects together: their gains from draft `depth` + 1 on, and which they are."""

        def alike(entry: tuple[int, History]) -> tuple[Kind, int, list[int]]:
            return entry[1].kind, entry[1].level, entry[1].bins

        groups, members = [], []
        for (kind, level, bins), found in groupby(sorted(histories, key=alike), key=alike):
            rows = [r for r, _ in found]
            groups.append(Group(self._prospects(kind, level, tuple(bins))[depth:], len(rows)))
            members.append(rows)
        return groups, members

    def _prospects(self, kind: Kind, level: int, bins: tuple[int, ...]) -> list[float]:
        """Gains of a request's drafts; requests that look alike share them for some steps."""
        found = self._gains.get((kind, level, bins))
        if found is None:
            chain = self.survival.chain(kind, level, bins, self.most)
            found = self._gains[kind, level, bins] = weighted(chain, self.latency_weight)
        return found

    def _switch(self, on: bool) -> None:
        self.decisions.switches += on is not self._on
        self._on = on
        self.decisions.steps_on += on
        self.decisions.steps_off += not on

    def _price(self, step: _Step) -> float:
        """Seconds of one request's first draft and its row."""
        return step.drafts[0][1] + max(0.0, step.passes[1] - step.passes[0])

    def _probe(self, step: _Step, ready: list[Request], found: list[int], r: int) -> None:
        self._credit -= self._price(step)
        self.decisions.probes += 1
        step.probe, found[r] = ready[r], 1
