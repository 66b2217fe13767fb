"""An arm on the engine in this process, and how several of them share one stretch of time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf

from paceline.bench.runs import Answer, Closed, Job, Load, Tick
from paceline.engine.engine import Engine
from paceline.engine.plan import StepOutput

TURN = 0.1  # seconds: less than most of what disturbs a machine lasts; a change of turns costs one step's cold caches


class EngineArm:
    """Requests enter between steps. A token's time is the end of the step that brought it."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name, self.engine = name, engine

    def run(self, jobs: Sequence[Job], load: Load, tick: Tick) -> list[Answer]:
        """Whatever ends it, no request stays behind in the engine."""
        return in_turns([self], jobs, load, tick)[self.name]


def in_turns(arms: Sequence[EngineArm], jobs: Sequence[Job], load: Load, tick: Tick) -> dict[str, list[Answer]]:
    """The same requests for every arm, all at once: whoever has written least goes on for a turn, while the clocks of
    the others stand still. So the same part of the work is done by all of them at nearly the same time, and what slows
    the machine down slows all of them down. Whatever ends it, no request stays behind."""
    runs = {arm.name: EngineRun(arm, jobs, load, tick) for arm in arms}
    try:
        while running := [run for run in runs.values() if run.unfinished]:
            min(running, key=lambda run: run.tokens).go_on(TURN if len(running) > 1 else inf)
    finally:
        for run in runs.values():
            run.end()
    return {name: run.answers for name, run in runs.items()}


class EngineRun:
    """Requests on their way through an engine. tokens: how many came so far."""

    def __init__(self, arm: EngineArm, jobs: Sequence[Job], load: Load, tick: Tick) -> None:
        self._arm, self._jobs, self._load, self._tick = arm, jobs, load, tick
        self._by_id: dict[str, Answer] = {}
        self._in_flight = self.tokens = 0
        self._paused, self._left = 0.0, time.perf_counter()
        self._start = self._now()

    @property
    def answers(self) -> list[Answer]:
        """In the order of the jobs; of those that have entered."""
        return list(self._by_id.values())

    @property
    def unfinished(self) -> bool:
        return len(self._by_id) < len(self._jobs) or self._in_flight > 0

    def go_on(self, seconds: float) -> None:
        """For so long, or until all is answered; at least a step."""
        began = time.perf_counter()
        self._paused += began - self._left
        while self.unfinished:
            self._step()
            if time.perf_counter() - began >= seconds:
                break
        self._left = time.perf_counter()

    def end(self) -> None:
        for name in self._by_id:
            self._arm.engine.abort(name)

    def _now(self) -> float:
        """Seconds, without those in which others had their turn."""
        return time.perf_counter() - self._paused

    def _step(self) -> None:
        now = self._now()
        while len(self._by_id) < len(self._jobs) and self._due() <= now:
            self._enter(now if isinstance(self._load, Closed) else self._due())
        if not self._in_flight:
            time.sleep(max(0.0, self._due() - now))
            return
        for output in self._arm.engine.step():
            self._note(output)

    def _due(self) -> float:
        return self._start + self._load.due(len(self._by_id), self._in_flight)

    def _enter(self, sent: float) -> None:
        job, name = self._jobs[len(self._by_id)], f"{self._arm.name}-{len(self._by_id)}"
        (request,) = self._arm.engine.add_request(name, job.prompt, job.params)
        self._by_id[request.id] = Answer(sent, len(job.prompt))
        self._in_flight += 1

    def _note(self, output: StepOutput) -> None:
        answer, request = self._by_id[output.request.id], output.request
        answer.times.append(self._now())
        answer.counts.append(len(output.tokens))
        self.tokens += len(output.tokens)
        self._tick(len(output.tokens))
        if request.finish_reason is not None:
            answer.tokens, answer.stats, answer.cached = request.generated, request.stats, request.prefix_hit_tokens
            self._in_flight -= 1
            self._tick(request.params.max_tokens - answer.output_tokens)
