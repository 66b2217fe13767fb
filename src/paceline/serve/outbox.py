"""What the engine has said and the web process has not heard: gathered by answer, so that fast steps cost few messages.

A message costs the web process a wake-up, and each answer in it a write to a client. Small models make a thousand steps
a second, which no reader can follow; so steps that follow each other faster than `interval` are told together. What
somebody waits for (an answer's first tokens, its end) is told at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.outputs import Timing
from paceline.request import Request
from paceline.serve.messages import Finished, Piece

# Seconds between messages for each answer in them, and at most: an answer costs the web process 0.05 to 0.1 ms, and
# so it takes a fiftieth of a core at most, which may be one that the engine computes on.
AN_ANSWER, LONGEST = 0.008, 0.2


@dataclass
class _Answer:
    """told: how many of its tokens the web process knows. moments: when the steps that brought the rest ended."""

    job: str
    index: int
    request: Request
    told: int = 0
    moments: list[float] = field(default_factory=list)

    @property
    def urgent(self) -> bool:
        return not self.told or self.request.finish_reason is not None

    def piece(self) -> Piece:
        """What has not been told."""
        request, told, moments = self.request, self.told, self.moments
        tokens = request.tokens[request.num_prompt + told :]
        detailed = request.params.rejected_drafts
        scored = request.params.prompt_logprobs is not None and not told
        self.told, self.moments = told + len(tokens), []
        return Piece(
            job=self.job,
            index=self.index,
            tokens=tokens,
            origins=request.origins[told:] if detailed else [],
            moments=moments,
            rejected=request.rejected[told:] if detailed else None,
            logprobs=None if request.params.logprobs is None else request.logprobs[told:],
            prompt_logprobs=request.prompt_logprobs if scored else None,
            finished=_finished(request) if request.finish_reason is not None else None,
        )


class Outbox:
    """Knows which request of the engine is which answer of which job. interval: seconds; 0 tells every step at once."""

    def __init__(self, interval: float) -> None:
        self._interval, self._emptied = interval, 0.0
        self._answers: dict[str, _Answer] = {}
        self._news: dict[str, _Answer] = {}  # those with something to tell
        self._hurry = False  # one of them is urgent

    def open(self, job: str, requests: list[Request]) -> None:
        """Answer i of the job is the i-th of these requests."""
        self._answers |= {request.id: _Answer(job, index, request) for index, request in enumerate(requests)}

    def job_of(self, request: Request) -> str | None:
        """None once its answer has ended or was dropped."""
        answer = self._answers.get(request.id)
        return None if answer is None else answer.job

    def drop(self, job: str) -> list[str]:
        """No more is told of this job; the ids of its requests that had not ended."""
        names = [name for name, answer in self._answers.items() if answer.job == job]
        for name in names:
            del self._answers[name]
            self._news.pop(name, None)
        return names

    def add(self, request: Request, now: float) -> None:
        """A step brought it tokens, or its end. now: of the monotonic clock, which both processes share."""
        answer = self._answers.get(request.id)
        if answer is not None:
            answer.moments.append(now)
            self._news[request.id] = answer
            self._hurry = self._hurry or answer.urgent

    def take(self, now: float) -> list[Piece]:
        """What is to be told by now."""
        pause = max(self._interval, min(AN_ANSWER * len(self._news), LONGEST)) if self._interval else 0.0
        due = now - self._emptied >= pause
        if not due and not self._hurry:
            return []
        self._emptied, self._hurry = now if due else self._emptied, False
        names = [name for name, answer in self._news.items() if due or answer.urgent]
        return [self._told(name) for name in names]

    def _told(self, name: str) -> Piece:
        piece = self._news.pop(name).piece()
        if piece.finished is not None:
            del self._answers[name]
        return piece


def _finished(request: Request) -> Finished:
    assert request.finish_reason is not None
    return Finished(
        reason=request.finish_reason,
        seed=request.seed,
        prefix_hit_tokens=request.prefix_hit_tokens,
        speculation=request.stats,
        timing=Timing.of(request),
    )
