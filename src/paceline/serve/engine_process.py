"""The engine in a process of its own: `python -P -m paceline.serve.engine_process`, started by `client`.

It steps as long as there is work, looks for messages between steps, and ends when the web process hangs up. Signals
are the web process's affair: it drains first, so those that a terminal or a service manager sends to all are ignored.
"""

from __future__ import annotations

import gc
import signal
from time import monotonic

import torch
from pydantic import BaseModel

from paceline.errors import UserError
from paceline.llm import LLM
from paceline.request import Request
from paceline.serve.channel import Channel
from paceline.serve.compiling import Compiling
from paceline.serve.cores import available, keep_to, shared_out
from paceline.serve.messages import Abort, Add, Failed, Ready, Refused, Start, Stats, Step
from paceline.serve.outbox import Outbox
from paceline.speculative_config import AUTO
from paceline.tokenizer import IncrementalDecoder

STATS_SECONDS = 0.2
LOOK_SECONDS = 0.002  # between looks at the pipe while there is work: a look takes a hundredth of a short step


class Worker:
    def __init__(self, llm: LLM, channel: Channel, interval: float) -> None:
        """interval: as in `Outbox`."""
        self.llm, self.engine, self.channel = llm, llm.engine, channel
        self._outbox = Outbox(interval)
        self._told, self._looked = 0.0, 0.0
        self._spare_cores: list[int] = []
        self._compiling = Compiling(llm.loaded.grammars)

    def run(self) -> None:
        gc.freeze()  # what is here by now stays, and need not be searched for garbage
        self._take_cores()
        self.channel.send(self._ready(), self._stats())
        while not self.channel.closed:
            self._look()
            self._step()

    def _look(self) -> None:
        """At what has come for the engine; for as long as it takes, when there is nothing else to do."""
        idle, now = not self.engine.has_unfinished, monotonic()
        if idle or now - self._looked > LOOK_SECONDS:
            self._looked = now
            for message in self.channel.receive(wait=idle and not self._compiling):
                self._handle(message)
        if self._compiling:
            self._queue_compiled()

    def _take_cores(self) -> None:
        if self.engine.device is None or torch.device(self.engine.device).type == "cpu":
            own, self._spare_cores = shared_out(available(), torch.get_num_threads())
            keep_to(own)

    def _handle(self, message: Start | Add | Abort) -> None:
        if isinstance(message, Add) and message.params.structured_outputs is not None:
            self._compiling.add(message)
        elif isinstance(message, Add):
            self._add(message)
        elif isinstance(message, Abort):
            self._abort(message.job)

    def _add(self, message: Add) -> None:
        # Without stop strings nothing needs the text here.
        decoder = (lambda: IncrementalDecoder(self.llm.tokenizer)) if message.params.stop else None
        try:
            requests = self.engine.add_request(
                message.job,
                message.prompt,
                message.params,
                decoder=decoder,
                num_speculative_tokens=message.num_speculative_tokens,
                drafter=message.drafter,
            )
        except UserError as error:
            self.channel.send(Refused(job=message.job, sentence=str(error)))
            return
        self._outbox.open(message.job, requests)

    def _queue_compiled(self) -> None:
        for message, complaint in self._compiling.done(idle=not self.engine.has_unfinished):
            if complaint is None:
                self._add(message)
            else:
                self.channel.send(Refused(job=message.job, sentence=complaint))

    def _abort(self, job: str) -> None:
        self._compiling.forget(job)
        for name in self._outbox.drop(job):
            self.engine.abort(name)
        self.channel.send(self._stats())

    def _step(self) -> None:
        if not self.engine.has_unfinished:
            return
        outputs, now = self.engine.step(), monotonic()
        for output in outputs:
            if output.request.finish_reason == "error":
                self._give_up(output.request)
            self._outbox.add(output.request, now)
        pieces = self._outbox.take(now)
        news: list[BaseModel] = [Step(pieces=pieces)] if pieces else []
        if now - self._told > STATS_SECONDS or not self.engine.has_unfinished:
            news.append(self._stats())
        if news:
            self.channel.send(*news)

    def _give_up(self, request: Request) -> None:
        """All answers of a job, when one cannot go on in its grammar."""
        job = self._outbox.job_of(request)
        if job is not None and request.grammar is not None:
            sentence = f"The answer cannot go on in its grammar ({request.grammar.error}); change the grammar."
            self.channel.send(Refused(job=job, sentence=sentence))
            self._abort(job)

    def _ready(self) -> Ready:
        limits = self.engine.limits
        return Ready(
            drafter=self.llm.drafter,
            num_speculative_tokens=self.llm.most_speculative_tokens,
            max_model_len=limits.max_model_len,
            vocab_size=limits.vocab_size,
            eos_token_ids=list(self.engine.eos_token_ids),
            max_num_seqs=self.llm.config.max_num_seqs,
            auto=self.llm.num_speculative_tokens == AUTO,
            spare_cores=self._spare_cores,
        )

    def _stats(self) -> Stats:
        self._told = monotonic()
        scheduler, stats = self.engine.scheduler, self.engine.stats
        allocator = scheduler.allocator
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks_used=allocator.num_blocks - allocator.num_free,
            blocks=allocator.num_blocks,
            steps=stats.steps,
            preemptions=stats.preemptions,
            seconds=dict(stats.seconds),
        )


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel.of_standard_streams()
    for message in channel.receive(wait=True):
        assert isinstance(message, Start), "the first message starts the engine"
        keep_to(message.cores)  # the web process may keep to its own by now
        try:
            llm = LLM(**message.options)
            llm.engine.preallocate()
        except UserError as error:
            channel.send(Failed(sentence=str(error)))
            return
        Worker(llm, channel, message.interval).run()


if __name__ == "__main__":
    main()
