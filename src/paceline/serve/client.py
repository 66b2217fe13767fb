"""The web process's side of the engine: starts it, hands it jobs, brings back what came of them, starts it again.

All of it runs in one event loop. The pipe from the engine is read whatever the HTTP clients do.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from itertools import count
from typing import Any

from pydantic import BaseModel

from paceline.errors import UserError
from paceline.request import SamplingParams
from paceline.serve.child import Child
from paceline.serve.cores import available, keep_to
from paceline.serve.errors import ApiError
from paceline.serve.job import Drafts, Job, Watcher
from paceline.serve.log import log
from paceline.serve.messages import (
    Abort,
    Add,
    Failed,
    Piece,
    Ready,
    Refused,
    Start,
    Stats,
    Step,
    from_engine,
)

COMMAND = (sys.executable, "-P", "-m", "paceline.serve.engine_process")
# oneDNN and its wrapper in torch keep a compiled product for each number of rows, by default 1024 of them: with batches
# of all sizes that is memory which grows for minutes. Fewer than these are made again and again.
BOUNDED = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds before an engine that died is started again
CRASHED = "The engine stopped in the middle of this request and is being started again; send it again."
DOWN = "The engine is being started again; come back in a moment."


class EngineClient:
    """`facts`: what the engine can do. `stats`: its last look at itself. `alive`: whether it takes jobs."""

    facts: Ready

    def __init__(
        self,
        options: dict[str, Any],
        max_queue: int,
        timeout: float,
        watcher: Watcher,
        command: Sequence[str] = COMMAND,
        interval: float = 0.0,
    ) -> None:
        self._command, self._interval = command, interval
        self._options, self._max_queue, self._timeout, self._watcher = options, max_queue, timeout, watcher
        self._child: Child | None = None
        self._first: asyncio.Future[Ready | Failed | None]  # what the present engine said first
        self._gone: asyncio.Event  # it has hung up
        self._worked: bool  # it has answered something
        self._supervisor: asyncio.Task[None] | None = None
        self._jobs: dict[str, tuple[Job, asyncio.TimerHandle]] = {}
        self._names = count()
        self._cores = available()
        self.stats: Stats | None = None
        self.alive = False

    async def start(self) -> None:
        """Returns when the engine is up. Raises `UserError` when it cannot be had."""
        await self._launch()
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Hangs up; the engine process ends."""
        if self._supervisor is not None:
            self._supervisor.cancel()
        self.alive = False
        self._fail_all(ApiError(503, "The server is going down; send this request again later."))
        if self._child is not None:
            await self._child.end()

    @property
    def open_answers(self) -> int:
        return sum(job.open for job, _ in self._jobs.values())

    def check_room(self, answers: int) -> None:
        """Raises `ApiError`: 400 for more answers than the server ever takes, 429 when there is no room for them now,
        503 while there is no engine."""
        room = self.facts.max_num_seqs + self._max_queue
        if answers > room:
            raise ApiError(400, f"This asks for {answers} answers at once, and the server takes {room}: ask for fewer.")
        if not self.alive:
            raise ApiError(503, DOWN)
        if self.open_answers + answers > room:
            raise ApiError(429, f"The server is full ({self.open_answers} answers under way); try again in a moment.")

    def submit(
        self, prompt: list[int], params: SamplingParams, drafts: Drafts, news: asyncio.Event | None = None
    ) -> Job:
        """Hands a job over. news: as in `Job`.

        Whoever leaves it before its end must `abort` it. Raises `ApiError` as `check_room` does; what the engine says
        of the job comes with its pieces."""
        self.check_room(params.n)
        job = Job(f"job-{next(self._names)}", prompt, params, drafts, news)
        timer = asyncio.get_running_loop().call_later(self._timeout, self._expire, job)
        self._jobs[job.id] = (job, timer)
        self._watcher.arrived(job)
        self._send(
            Add(
                job=job.id,
                prompt=prompt,
                params=params,
                num_speculative_tokens=drafts.tokens,
                drafter=drafts.named,
            )
        )
        return job

    def abort(self, job: Job) -> None:
        """The engine forgets the job and frees its blocks. Nothing happens to one that has ended."""
        if self._drop(job.id) is not None:
            self._send(Abort(job=job.id))
            job.fail(ApiError(499, "The request was aborted."))

    def _expire(self, job: Job) -> None:
        self.abort(job)
        job.fail(ApiError(504, f"The answer took longer than {self._timeout:g} seconds; ask for fewer tokens."))

    def _drop(self, name: str) -> Job | None:
        if name not in self._jobs:
            return None
        job, timer = self._jobs.pop(name)
        timer.cancel()
        self._watcher.left(job)
        return job

    def _fail_all(self, error: ApiError) -> None:
        for name in list(self._jobs):
            job = self._drop(name)
            if job is not None:
                job.fail(error)

    def _send(self, message: BaseModel) -> None:
        if self._child is not None:
            self._child.send(message)

    async def _launch(self) -> None:
        self._first, self._gone, self._worked = asyncio.get_running_loop().create_future(), asyncio.Event(), False
        self._child = await Child.start(self._command, BOUNDED | os.environ, self._hear)
        self._child.send(Start(options=self._options, cores=self._cores, interval=self._interval))
        try:
            said = await self._first
        except BaseException:  # interrupted while it loads: it must not stay behind
            await self._child.end()
            raise
        if isinstance(said, Failed):
            raise UserError(said.sentence)
        if not isinstance(said, Ready):
            raise UserError("The engine process ended before it was ready; what it wrote above tells why.")
        self.facts, self.alive = said, True
        keep_to(said.spare_cores)

    async def _supervise(self) -> None:
        """Waits until the engine dies, and starts it again, each time in a row after a longer pause."""
        pause = FIRST_PAUSE
        while True:
            if self.alive:
                await self._gone.wait()
                pause = FIRST_PAUSE if self._worked else pause
            self.alive, self.stats = False, None
            self._fail_all(ApiError(503, CRASHED))
            assert self._child is not None
            await self._child.end()
            log("engine_died", exit_code=self._child.exit_code, again_in_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            self._watcher.restarted()
            try:
                await self._launch()
                log("engine_ready")
            except Exception as error:  # whatever it was, the next attempt may go better
                log("engine_failed", error=str(error))

    def _hear(self, line: bytes) -> None:
        """What the engine says; empty when it has hung up."""
        message = from_engine(line) if line else None
        if isinstance(message, Step):
            self._worked = True
            for piece in message.pieces:
                self._deliver(piece)
        elif isinstance(message, Stats):
            self.stats = message
        elif isinstance(message, Refused):
            job = self._drop(message.job)
            if job is not None:
                job.fail(ApiError(400, message.sentence))
        elif not self._first.done():
            self._first.set_result(message)
        if message is None:
            self._gone.set()

    def _deliver(self, piece: Piece) -> None:
        """To its job, unless that was aborted meanwhile."""
        job, _ = self._jobs.get(piece.job, (None, None))
        if job is None:
            return
        job.put(piece)
        self._watcher.piece(job, piece)
        if job.ended:
            self._drop(job.id)
