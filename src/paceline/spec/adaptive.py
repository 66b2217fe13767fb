"""Adaptive width: every step drafts and verifies what brings the most tokens a second over the whole batch.

    rate = (sum over requests of 1 + S_1 + ... + S_k) / (pass of all rows + drafting of every depth)

S_j is the probability that a request's first j drafts are accepted (`survival`), the seconds come from a measured table
(`cost`), the best set of every size is priced (`allocate`), and which size it shall be is said by these forecasts as
far as the clock bears them out (`referee`). ALL drafts are paid for, accepted or not. A decision stands for some steps:
on a small model deciding costs more than deciding afresh brings.

Where a further draft costs much more than a question, the confidence of the drafts is asked for: a chain ends where the
next draft is not worth its time at the rate that was chosen, and drafts that are not worth a row are not verified.

Prompts that are read in the same pass are left out: what they cost is spent anyhow, and a row more costs what it does
without them. Counted, they would make tokens look slow, and time cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import exp
from typing import Any

from paceline.request import Request
from paceline.spec.allocate import Group, best_ways, weighted
from paceline.spec.cost import Costs, CostTable
from paceline.spec.referee import Referee
from paceline.spec.strands import WINDOW
from paceline.spec.survival import History, Kind, Survival
from paceline.spec.width import StepFacts

_ROOM = 2  # drafts beyond the plan, for those that turn out sure, where questions are asked
_QUESTION, _EACH = 8e-6, 3e-6  # seconds of asking after a depth, and for each request
_WORTH = 0.02  # of a step's time: about what is gained by asking
_FORGIVEN = 0.5  # what is left of requests' own histories at each decision without drafts
_WARM = 1  # first steps with drafts in a row that teach nothing: modules have little context yet
_YOUNG = 64  # first steps with drafts, of which much is learned; later, of those that the referee looks at
_LESSONS = 4  # requests of such a step from which survival is learned, in turn, of all others one; rounds of it
PATIENCE = 16  # steps with another number of requests before they count: some read prompts, and are back
_TRAFFIC, _ANSWER = 1000, 64  # steps of which prompts are remembered; tokens that a running request may still bring


@dataclass
class Decisions:
    """Steps with drafts and without, changes from one to the other, drafts made but not verified, trials of another
    number than what seemed best."""

    steps_on: int = 0
    steps_off: int = 0
    switches: int = 0
    cut: int = 0
    trials: int = 0


@dataclass
class _Prices:
    """At what has been decided. rate: tokens a second, as forecast. By depth, from the first draft on: rows: seconds
    of a row with such a draft; passes, each: of a pass of the drafter, and of each request in it."""

    rate: float
    rows: list[float]
    passes: list[float]
    each: list[float]


@dataclass
class _Plan:
    """What was decided, for `left` more steps of `requests`, or as many. widths: by row; usual: of who comes later."""

    requests: int = 0
    left: int = 0
    unlike: int = 0  # steps in a row with a quarter more or fewer
    widths: dict[int, int] = field(default_factory=dict)
    usual: int = 0
    prices: _Prices | None = None  # where questions are asked


class AdaptiveWidth:
    """A `WidthPolicy`. most: drafts at a time. latency_weight 0 counts tokens, 1 counts the logarithm of each
    request's tokens, so that slow requests are not left behind.

    A request with `num_speculative_tokens` of its own gets just so many. known: what a policy before this one knew of
    the table's errors (`known`)."""

    def __init__(
        self, table: CostTable, most: int, latency_weight: float = 0.0, known: Mapping[str, Any] | None = None
    ) -> None:
        self.costs, self.survival, self.most = Costs(table), Survival(most), most
        self.latency_weight, self.decisions = latency_weight, Decisions()
        self.referee = Referee(most, known)
        self._plan, self._on, self._turn = _Plan(), True, 0
        self._age = _WARM  # steps with drafts in a row
        self._prompts = self._emitted = 0.0  # of late: tokens of prompts that were read, tokens that came
        self._looking = True  # whether the referee wants to hear of this step
        self._lessons: list[tuple[int, History]] = []  # of this step: request r of it, and its history
        self._drafted: list[int] = []  # requests that made draft number j + 1 in this step, if it was asked

    @property
    def asks(self) -> bool:
        return self._plan.prices is not None

    @property
    def listens(self) -> bool:
        """Whether it wants to learn of this step: of all that have drafts."""
        return self._looking or bool(self._lessons)

    @property
    def idle(self) -> int:
        """None while the batch changes, for that may become a decision."""
        return 0 if self._plan.unlike else self._plan.left

    def skip(self, steps: int) -> None:
        self._plan.left -= steps
        self._looking = self.referee.looks(steps)
        if self._on:
            self._age += steps
            self.decisions.steps_on += steps
        else:
            self.decisions.steps_off += steps

    # -- the three choices

    def widths(self, ready: list[Request]) -> list[int]:
        plan = self._plan
        unlike = abs(len(ready) - plan.requests) > max(1, plan.requests // 4)
        plan.unlike = plan.unlike + 1 if unlike else 0
        if not plan.left or plan.unlike >= PATIENCE:
            plan = self._plan = self._decide(ready)
        plan.left -= 1
        self._looking, self._lessons, self._drafted = self.referee.looks(), [], []
        if not plan.usual and not plan.widths and not any(request.num_speculative_tokens for request in ready):
            self._switch(False)  # as little as can be, for nothing is to be gained
            return [0] * len(ready)
        found = [
            plan.widths.get(request.row, plan.usual) if (own := request.num_speculative_tokens) is None else own
            for request in ready
        ]
        self._switch(any(found))
        if self._age:
            much = self._looking or self.decisions.steps_on < _YOUNG
            self._lessons = self._lessons_of(ready, _LESSONS if much else 1)
        return found

    def deeper(self, depth: int, requests: list[Request], confidences: list[float]) -> list[bool]:
        """The next draft must be worth its row and its share of a pass; all that are, together, the pass itself."""
        prices = self._plan.prices
        assert prices is not None, "nothing was to be asked"
        self._drafted.append(len(requests))
        last = depth >= self.most
        level = min(depth, self.most - 1)
        price = prices.rate * (prices.rows[level] + prices.each[level])
        more, worth = [], 0.0
        for request, confidence in zip(requests, confidences, strict=True):
            history, own = self.survival.history(request), request.num_speculative_tokens
            gain = self._gain(history, self.survival.next(history, confidence)) - price
            more.append(own > depth if own is not None else gain > 0 and not last)
            worth += max(0.0, gain)
        if worth < prices.rate * prices.passes[level]:
            more = [(request.num_speculative_tokens or 0) > depth for request in requests]
        return more

    def cut(self, requests: list[Request], drafted: list[int]) -> list[int]:
        """Drafting is paid for: now a draft must be worth its row."""
        prices, kept = self._plan.prices, list(drafted)
        assert prices is not None, "nothing was to be asked"
        for r, request in enumerate(requests):
            if request.num_speculative_tokens is None and drafted[r]:
                gains = weighted(self.survival.history(request).made[: drafted[r]], self.latency_weight)
                while 0 < kept[r] <= len(gains) and gains[kept[r] - 1] < prices.rate * prices.rows[kept[r] - 1]:
                    kept[r] -= 1
        self.decisions.cut += sum(drafted) - sum(kept)
        return kept

    # -- what came of it

    def learn(self, facts: StepFacts) -> None:
        n, extra = len(facts.verified), sum(facts.verified)
        fading = exp(-facts.steps / _TRAFFIC)
        self._prompts = self._prompts * fading + facts.prompts
        right = facts.rounds or [[min(pair)] for pair in zip(facts.agreed, facts.verified, strict=True)]
        rounds = len(right[0]) if right else 1
        self._emitted = self._emitted * fading + facts.steps * (n + sum(map(sum, right)) / rounds)
        if n and self._looking:
            drafted = self._drafted or _by_depth(facts.verified)
            expected = self.costs.step(n, extra, facts.context, drafted)
            clean = facts.clean and expected >= facts.alone  # not what it took, or only slow ones would tell
            if self.referee.learn(expected, facts.spent or [facts.seconds + sum(facts.drafting)], clean):
                self._plan.left = 0
        young = self.decisions.steps_on < _YOUNG
        for r, history in self._lessons if self._age > _WARM else ():
            each = facts.rounds[r] if facts.rounds else facts.agreed[r : r + 1]
            for agreed in each if young else each[:_LESSONS]:
                self.survival.learn(history, facts.verified[r], agreed)
        self._lessons = []

    def known(self) -> dict[str, Any]:
        return self.referee.known()

    def as_dict(self) -> dict[str, Any]:
        decided = asdict(self.decisions) | {"trials": self.referee.trials}
        return {"num_speculative_tokens": "auto", "most": self.most, **decided}

    # -- parts

    def _decide(self, ready: list[Request]) -> _Plan:
        """For some steps: how many drafts, and who gets them."""
        n, plan = len(ready), _Plan(len(ready))
        if not self._on:  # a bad moment must not last
            self.survival.fade()
        owned = sum(request.num_speculative_tokens or 0 for request in ready)
        groups, members = self._groups([request for request in ready if request.num_speculative_tokens is None])
        passes = self.costs.passes(n, owned, sum(request.cached for request in ready), n * self.most)
        drafts = [self.costs.drafts(depth, n) for depth in range(self.most)]
        ways = best_ways(groups, passes, drafts, float(n), self.referee.places)
        reading = self._prompts / (self._emitted + _ANSWER * n)  # tokens of prompts for each token
        seconds = [
            way.seconds + way.tokens * reading * self.costs.absorbing(k)
            for k, way in zip(self.referee.places, ways, strict=True)
        ]
        waiting = [WINDOW * n * self.costs.absorbing(k) for k in self.referee.places]
        k, plan.left = self.referee.choose(n, [way.tokens for way in ways], seconds, waiting, _kind_of(ready))
        chosen, plan.usual = ways[k], self.referee.places[k]
        for taken, mine in zip(chosen.taken, members, strict=True):
            for i, request in enumerate(mine):
                if (width := sum(count > i for count in taken)) != plan.usual:
                    plan.widths[request.row] = width
        deepest = max([plan.usual, *plan.widths.values()])
        worth = deepest * (_QUESTION + n * _EACH) < _WORTH * chosen.seconds
        if deepest > 1 and worth and not self.costs.table.at_once:
            plan.prices = _prices(chosen.tokens / chosen.seconds, passes, drafts, n)
            plan.usual = min(self.most, plan.usual + _ROOM)
            plan.widths = {row: min(self.most, width + _ROOM) for row, width in plan.widths.items() if width}
        return plan

    def _groups(self, free: list[Request]) -> tuple[list[Group], list[list[Request]]]:
        """Requests with the same prospects together: their gains, and which they are."""
        members: dict[tuple[Kind, int], list[Request]] = {}
        for request in free:
            history = self.survival.history(request)
            if not self._on:
                history.shift *= _FORGIVEN
            members.setdefault((history.kind, history.level), []).append(request)
        groups = [
            Group(weighted(self.survival.chain(*prospects, self.most), self.latency_weight), len(mine))
            for prospects, mine in members.items()
        ]
        return groups, list(members.values())

    def _lessons_of(self, ready: list[Request], most: int) -> list[tuple[int, History]]:
        """From whom this step is learned: everybody, or so many in turn."""
        n, some = len(ready), range(len(ready))
        if n > most and not self.asks:
            self._turn = (self._turn + most) % n
            some = range(self._turn, min(self._turn + most, n))
        found = [(r, self.survival.history(ready[r])) for r in some]
        for _, history in found:
            if history.bins:
                history.bins, history.made = [], []
        return found

    def _gain(self, history: History, survival: float) -> float:
        """Of a draft that comes behind those made."""
        return survival / (1 + sum(history.made)) ** self.latency_weight if self.latency_weight else survival

    def _switch(self, on: bool) -> None:
        self._age = self._age + 1 if on else 0
        self.decisions.switches += on is not self._on
        self._on = on
        self.decisions.steps_on += on
        self.decisions.steps_off += not on


def _kind_of(ready: list[Request]) -> int:
    """What half of the requests or more are: masks and draws cost what the table, made of greedy steps, leaves out."""
    masked = sum(request.grammar is not None for request in ready)
    drawn = sum(not request.params.greedy for request in ready)
    return 2 * (2 * masked >= len(ready)) + (2 * drawn >= len(ready))


def _by_depth(widths: list[int]) -> list[int]:
    """How many have a draft 1, 2, ... Example: widths 2, 0, 1 are [2, 1]."""
    return [sum(map(depth.__lt__, widths)) for depth in range(max(widths))]


def _prices(rate: float, passes: list[float], drafts: list[list[float]], requests: int) -> _Prices:
    """Slopes over a row, or a draft, for each request, so that steps even out."""
    rows = [(more - less) / requests for less, more in pairwise(passes[::requests])]
    each = [(costs[requests] - costs[1]) / max(1, requests - 1) for costs in drafts]
    return _Prices(rate, rows, [costs[1] - x for costs, x in zip(drafts, each, strict=True)], each)
