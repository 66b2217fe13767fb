"""Engines that share one stretch of time: each clock stands still while another has its turn, and a slow machine is
slow for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from paceline.bench import here
from paceline.bench.columns import whole_run
from paceline.bench.here import EngineArm, in_turns
from paceline.bench.runs import Answer, Closed, Job
from paceline.request import SamplingParams

WORK = [Job([1], SamplingParams(max_tokens=500), str(index), "made up") for index in range(4)]


@dataclass
class Clock:
    """Seconds that pass only where somebody works. slowness: how many of them a second of work takes, by the time."""

    slowness: Callable[[float], float] = lambda now: 1.0
    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds * self.slowness(self.now)


@dataclass
class Machine:
    """An engine that gives everyone in flight a token a step, for `cost` seconds of work."""

    clock: Clock
    cost: float
    running: list[Any] = field(default_factory=list)

    def add_request(self, name: str, prompt: list[int], params: SamplingParams) -> list[Any]:
        request = SimpleNamespace(
            id=name, params=params, generated=[], finish_reason=None, stats=None, prefix_hit_tokens=0
        )
        self.running.append(request)
        return [request]

    def step(self) -> list[Any]:
        self.clock.work(self.cost)
        for request in self.running:
            request.generated.append(len(request.generated))
            request.finish_reason = "length" if len(request.generated) == request.params.max_tokens else None
        outputs = [SimpleNamespace(request=request, tokens=[0]) for request in self.running]
        self.running = [request for request in self.running if request.finish_reason is None]
        return outputs

    def abort(self, name: str) -> bool:
        there = [request for request in self.running if request.id == name]
        self.running = [request for request in self.running if request.id != name]
        return bool(there)


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> Callable[[Clock], list[EngineArm]]:
    def make(clock: Clock) -> list[EngineArm]:
        monkeypatch.setattr(here.time, "perf_counter", clock.perf_counter)
        costs = {"slow": 0.003, "fast": 0.002}
        return [EngineArm(name, Machine(clock, cost)) for name, cost in costs.items()]

    return make


def seconds(answers: list[Answer]) -> float:
    return float(whole_run(answers, 2)["seconds"])


def test_a_clock_stands_still_while_others_have_their_turn(arms: Callable[[Clock], list[EngineArm]]) -> None:
    clock, ticks = Clock(), list[int]()
    found = in_turns(arms(clock), WORK, Closed(2), ticks.append)
    # Two at a time, two after the other: 1000 steps for each arm.
    spent = {name: seconds(answers) for name, answers in found.items()}
    assert spent == pytest.approx({"slow": 3.0, "fast": 2.0}, rel=1e-3)
    assert clock.now == pytest.approx(5.0, rel=1e-3) and sum(ticks) == 2 * 4 * 500
    for answers in found.values():
        assert all(answer.tokens == list(range(500)) and answer.times == sorted(answer.times) for answer in answers)


def test_a_slow_machine_is_slow_for_all(arms: Callable[[Clock], list[EngineArm]]) -> None:
    """Four times as slow for the first second, as when somebody else has come in: in turns the ratio is hardly touched,
    one after the other it is far off."""

    def busy(now: float) -> float:
        return 4.0 if now < 1.0 else 1.0

    found = in_turns(arms(Clock(busy)), WORK, Closed(2), lambda tokens: None)
    assert seconds(found["slow"]) / seconds(found["fast"]) == pytest.approx(1.5, rel=0.03)
    after = [arm.run(WORK, Closed(2), lambda tokens: None) for arm in arms(Clock(busy))]
    assert abs(seconds(after[0]) / seconds(after[1]) / 1.5 - 1) > 0.2


def test_nobody_is_left_behind(arms: Callable[[Clock], list[EngineArm]]) -> None:
    both, told = arms(Clock()), list[int]()

    def stop(tokens: int) -> None:
        told.append(tokens)
        if len(told) == 1200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_turns(both, WORK, Closed(2), stop)
    assert not any(arm.engine.running for arm in both)
