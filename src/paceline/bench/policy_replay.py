"""Recorded traces through a policy, fixed widths and an oracle: the same decisions as in the engine, on paper.

Time is what the table of costs says, so a replay is exact and repeatable: it judges decisions, not machines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from paceline.bench.traces import Trace, Traces
from paceline.request import Request, SamplingParams
from paceline.spec.adaptive import AdaptiveWidth
from paceline.spec.allocate import Group, best_sets
from paceline.spec.cost import Costs
from paceline.spec.width import FixedWidth, StepFacts, WidthPolicy

Shape = Callable[[float], float]  # share of the tokens written -> share of the most requests at a time

SHAPES: dict[str, Shape] = {
    "steady": lambda share: 1.0,
    "ramp": lambda share: 1 - abs(2 * share - 1),
    "bursts": lambda share: 1.0 if int(share * 10) % 2 else 0.1,
}


@dataclass(eq=False)
class Running:
    """A request of the replay and where it is in its trace."""

    request: Request
    trace: Trace
    place: int = 0


class Oracle:
    """A policy that knows what will be accepted: it drafts and verifies only that, and of that what pays best."""

    listens, asks, idle = True, False, 0

    def __init__(self, costs: Costs, most: int) -> None:
        self.costs, self.most = costs, most
        self.running: list[Running] = []

    def widths(self, ready: list[Request]) -> list[int]:
        context = sum(request.cached for request in ready)
        passes = self.costs.passes(len(ready), 0, context, len(ready) * self.most)
        drafts = [self.costs.drafts(depth, len(ready)) for depth in range(self.most)]
        groups = [Group([1.0] * one.trace.accepted[one.place], 1) for one in self.running]
        sets = best_sets(groups, passes, drafts, float(len(ready)))
        best = max(range(len(sets.rows)), key=lambda i: sets.tokens[i] / sets.seconds[i])
        return [sum(taken) for taken in sets.taken(best, groups)]

    def deeper(self, depth: int, requests: list[Request], confidences: list[float]) -> list[bool]:
        return [True] * len(requests)

    def cut(self, requests: list[Request], drafted: list[int]) -> list[int]:
        return drafted

    def skip(self, steps: int) -> None:
        """None is skipped."""

    def learn(self, facts: StepFacts) -> None:
        """It knows already."""

    def as_dict(self) -> dict[str, Any]:
        return {}


@dataclass
class Replay:
    """One policy over one load."""

    traces: Traces
    policy: WidthPolicy
    concurrency: int
    shape: Shape
    tokens: int

    running: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.costs, self.next = Costs(self.traces.costs), 0
        self.seconds, self.emitted, self.drafted, self.asked = 0.0, 0, 0, 0
        self.free = list(range(self.concurrency))[::-1]

    def run(self) -> float:
        """Tokens a second."""
        while self.emitted < self.tokens:
            self._admit()
            self._step()
        return self.emitted / self.seconds

    def _admit(self) -> None:
        wanted = max(1, ceil(self.concurrency * self.shape(self.emitted / self.tokens)))
        while len(self.running) < wanted:
            trace = self.traces.traces[self.next % len(self.traces.traces)]
            params = SamplingParams(temperature=float(trace.drawn))
            request = Request(str(self.next), [0] * (trace.prompt_tokens + 1), trace.prompt_tokens, params, 0)
            request.cached, request.row = trace.prompt_tokens, self.free.pop()
            self.next += 1
            self.running.append(Running(request, trace))

    def _step(self) -> None:
        """As `Engine.step`: widths, drafting depth by depth, cut, verification, learning."""
        running, policy = self.running, self.policy
        ready = [one.request for one in running]
        self.asked += len(ready)
        if isinstance(policy, Oracle):
            policy.running = running
        room = [len(one.trace.confidences[one.place]) for one in running]
        widths = [min(pair) for pair in zip(policy.widths(ready), room, strict=True)]
        drafted, drafting = self._draft(widths)
        verified = policy.cut(ready, drafted) if policy.asks else drafted
        accepted = [min(v, one.trace.accepted[one.place]) for v, one in zip(verified, running, strict=True)]
        context, extra = sum(request.cached for request in ready), sum(verified)
        seconds = self.costs.passes(len(ready), extra, context, 0)[0]
        self.seconds += seconds + sum(drafting)
        self.drafted += sum(drafted)
        known = (min(v + 1, made) for v, made in zip(verified, drafted, strict=True))
        agreed = [min(n, one.trace.accepted[one.place]) for n, one in zip(known, running, strict=True)]
        policy.learn(StepFacts(verified, agreed, context, seconds, drafting))
        for one, count in zip(running, accepted, strict=True):
            self._advance(one, count + 1)
        self.running = [one for one in running if one.place < len(one.trace.accepted)]
        self.free += [one.request.row for one in running if one.place >= len(one.trace.accepted)]

    def _draft(self, widths: list[int]) -> tuple[list[int], list[float]]:
        """Drafts made for each request, and the seconds of each depth."""
        drafted, drafting = [0] * len(widths), []
        going = [r for r, width in enumerate(widths) if width]
        depth = 0
        while going:
            drafting.append(self.costs.drafts(depth, len(going))[len(going)])
            depth += 1
            for r in going:
                drafted[r] = depth
            if self.policy.asks:
                ready = [self.running[r].request for r in going]
                rows = (self.running[r] for r in going)
                confidences = [one.trace.confidences[one.place][depth - 1] for one in rows]
                more = self.policy.deeper(depth, ready, confidences)
                going = [r for r, go in zip(going, more, strict=True) if go]
            going = [r for r in going if widths[r] > depth]
        return drafted, drafting

    def _advance(self, one: Running, tokens: int) -> None:
        self.emitted += min(tokens, len(one.trace.accepted) - one.place)
        one.place += tokens
        one.request.tokens += [0] * tokens
        one.request.cached += tokens


def replay_all(
    traces: Traces, concurrencies: Sequence[int], tokens: int, tick: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """For every shape and concurrency: tokens a second of fixed widths, the policy and the oracle."""
    rows = []
    for shape in SHAPES:
        for concurrency in concurrencies:
            row: dict[str, Any] = {"shape": shape, "concurrency": concurrency}
            for name, policy in _arms(traces).items():
                replay = Replay(traces, policy, concurrency, SHAPES[shape], tokens * ceil(concurrency**0.5))
                row[name] = replay.run()
                if name == "auto":
                    row["width"] = replay.drafted / replay.asked
                tick()
            rows.append(row | _verdict(row))
    return rows


def arm_names(most: int) -> list[str]:
    return ["auto", "oracle", *map(str, range(most + 1))]


def _arms(traces: Traces) -> dict[str, WidthPolicy]:
    arms: list[WidthPolicy] = [AdaptiveWidth(traces.costs, traces.most), Oracle(Costs(traces.costs), traces.most)]
    arms += [FixedWidth(k) for k in range(traces.most + 1)]
    return dict(zip(arm_names(traces.most), arms, strict=True))


def _verdict(row: dict[str, Any]) -> dict[str, Any]:
    best = max((name for name in row if name.isdecimal()), key=lambda name: float(row[name]))
    return {"best": int(best), "of_best": row["auto"] / row[best], "of_oracle": row["auto"] / row["oracle"]}
