"""From an answer's tokens to its text, on the web process's side."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.engine.stop import Ending, TextStream
from paceline.request import Request
from paceline.serve.job import Job
from paceline.serve.messages import Finished, Piece, Ready
from paceline.tokenizer import IncrementalDecoder, Tokenizer


@dataclass(slots=True)
class Delta:
    """What is new in answer `index`: `text` is certain, never half a character and never beyond a stop string.

    origins, rejected: a token each, as in `Piece`; empty unless asked for. prompt_logprobs: as in `Piece`,
    of the first delta; empty in the others."""

    index: int
    text: str
    tokens: list[int]
    origins: list[int]
    rejected: list[int | None]
    logprobs: list[dict[int, float]]
    prompt_logprobs: list[dict[int, float]]
    finished: Finished | None


class AnswerText:
    """One answer's text. The engine's own rules cut it here as they ended it there: both see the same tokens."""

    def __init__(self, tokenizer: Tokenizer, facts: Ready, job: Job, index: int) -> None:
        request = Request(job.id, job.prompt, len(job.prompt), job.params, seed=0)
        self._stream = TextStream(IncrementalDecoder(tokenizer), job.params.stop)
        self._ending = Ending(request, facts.eos_token_ids, facts.max_model_len, self._stream)
        self._length, self._index = len(job.prompt), index

    def push(self, piece: Piece) -> Delta:
        self._ending.cut(self._length, piece.tokens)
        self._length += len(piece.tokens)
        if piece.finished is not None:
            self._stream.close()
        return Delta(
            index=self._index,
            text=self._stream.take(),
            tokens=piece.tokens,
            origins=piece.origins,
            rejected=piece.rejected or [],
            logprobs=piece.logprobs or [],
            prompt_logprobs=piece.prompt_logprobs or [],
            finished=piece.finished,
        )
