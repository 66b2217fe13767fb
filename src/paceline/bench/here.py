"""An arm on the engine in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count

from paceline.bench.runs import Answer, Closed, Job, Load, Tick
from paceline.engine.engine import Engine
from paceline.engine.plan import StepOutput


class EngineArm:
    """Requests enter between steps. A token's time is the end of the step that brought it."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name, self.engine = name, engine
        self._ids = count()

    def run(self, jobs: Sequence[Job], load: Load, tick: Tick) -> list[Answer]:
        """Whatever ends it, no request stays behind in the engine."""
        answers: dict[str, Answer] = {}
        try:
            for output in self._steps(jobs, load, answers):
                answer, request = answers[output.request.id], output.request
                answer.times.append(time.perf_counter())
                answer.counts.append(len(output.tokens))
                tick(len(output.tokens))
                if request.finish_reason is not None:
                    answer.tokens, answer.stats = request.generated, request.stats
                    answer.cached = request.prefix_hit_tokens
                    tick(request.params.max_tokens - answer.output_tokens)
        finally:
            for name in answers:
                self.engine.abort(name)
        return list(answers.values())

    def _steps(self, jobs: Sequence[Job], load: Load, answers: dict[str, Answer]) -> Iterator[StepOutput]:
        """Steps until all jobs have ended; each enters when it is due."""
        start, index, in_flight = time.perf_counter(), 0, 0
        while index < len(jobs) or in_flight:
            now = time.perf_counter()
            while index < len(jobs) and start + (due := load.due(index, in_flight)) <= now:
                sent = now if isinstance(load, Closed) else start + due
                answers[self._enter(jobs[index])] = Answer(sent, len(jobs[index].prompt))
                index, in_flight = index + 1, in_flight + 1
            if not in_flight:
                time.sleep(max(0.0, start + load.due(index, 0) - now))
                continue
            for output in self.engine.step():
                in_flight -= output.request.finish_reason is not None
                yield output

    def _enter(self, job: Job) -> str:
        (request,) = self.engine.add_request(f"{self.name}-{next(self._ids)}", job.prompt, job.params)
        return request.id
