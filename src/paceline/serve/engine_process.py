"""The engine in a process of its own: `python -P -m paceline.serve.engine_process`, started by `client`.

It steps as long as there is work, looks for messages between steps, and ends when the web process hangs up. Signals
are the web process's affair: it drains first, so those that a terminal or a service manager sends to all are ignored.
"""

from __future__ import annotations

import signal
from time import monotonic

import torch

from paceline.engine.plan import StepOutput
from paceline.errors import UserError
from paceline.llm import LLM
from paceline.outputs import Timing
from paceline.request import Request
from paceline.serve.channel import Channel
from paceline.serve.compiling import Compiling
from paceline.serve.cores import available, keep_to, shared_out
from paceline.serve.messages import Abort, Add, Failed, Finished, Piece, Ready, Refused, Start, Stats, Step
from paceline.speculative_config import AUTO
from paceline.tokenizer import IncrementalDecoder

STATS_SECONDS = 0.2


class Worker:
    """Keeps which request of the engine is which answer of which job."""

    def __init__(self, llm: LLM, channel: Channel) -> None:
        self.llm, self.engine, self.channel = llm, llm.engine, channel
        self._answers: dict[str, tuple[str, int]] = {}
        self._told = 0.0
        self._spare_cores: list[int] = []
        self._compiling = Compiling(llm.loaded.grammars)

    def run(self) -> None:
        self._take_cores()
        self.channel.send(self._ready())
        self.channel.send(self._stats())
        while True:
            for message in self.channel.receive(wait=not self.engine.has_unfinished and not self._compiling):
                self._handle(message)
            if self.channel.closed:
                return
            self._queue_compiled()
            self._step()

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
        self._answers |= {request.id: (message.job, index) for index, request in enumerate(requests)}

    def _queue_compiled(self) -> None:
        for message, complaint in self._compiling.done(idle=not self.engine.has_unfinished):
            if complaint is None:
                self._add(message)
            else:
                self.channel.send(Refused(job=message.job, sentence=complaint))

    def _abort(self, job: str) -> None:
        self._compiling.forget(job)
        for name in [name for name, (owner, _) in self._answers.items() if owner == job]:
            del self._answers[name]
            self.engine.abort(name)
        self.channel.send(self._stats())

    def _step(self) -> None:
        if not self.engine.has_unfinished:
            return
        outputs = self.engine.step()
        for output in outputs:
            self._give_up(output.request)
        pieces = [self._piece(output) for output in outputs if output.request.id in self._answers]
        if pieces:
            self.channel.send(Step(pieces=pieces))
        if monotonic() - self._told > STATS_SECONDS or not self.engine.has_unfinished:
            self.channel.send(self._stats())

    def _give_up(self, request: Request) -> None:
        """All answers of a job, when one cannot go on in its grammar."""
        if request.finish_reason == "error" and request.grammar is not None and request.id in self._answers:
            job, _ = self._answers[request.id]
            sentence = f"The answer cannot go on in its grammar ({request.grammar.error}); change the grammar."
            self.channel.send(Refused(job=job, sentence=sentence))
            self._abort(job)

    def _piece(self, output: StepOutput) -> Piece:
        request, new = output.request, len(output.tokens)
        (job, index), ended = self._answers[request.id], request.finish_reason is not None
        scored = request.params.prompt_logprobs is not None and len(request.generated) == new
        if ended:
            del self._answers[request.id]
        return Piece(
            job=job,
            index=index,
            tokens=output.tokens,
            origins=request.origins[len(request.origins) - new :],
            rejected=request.rejected[len(request.rejected) - new :] if request.params.rejected_drafts else None,
            logprobs=None if request.params.logprobs is None else request.logprobs[len(request.logprobs) - new :],
            prompt_logprobs=request.prompt_logprobs if scored else None,
            finished=_finished(request) if ended else None,
        )

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


def _finished(request: Request) -> Finished:
    assert request.finish_reason is not None
    return Finished(
        reason=request.finish_reason,
        seed=request.seed,
        prefix_hit_tokens=request.prefix_hit_tokens,
        speculation=request.stats,
        timing=Timing.of(request),
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
        except UserError as error:
            channel.send(Failed(sentence=str(error)))
            return
        Worker(llm, channel).run()


if __name__ == "__main__":
    main()
