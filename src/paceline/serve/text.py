"""From an answer's tokens to its text, on the web process's side."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.engine.stop import Ending, TextStream
from paceline.request import Request
from paceline.serve.job import Job
from paceline.serve.messages import Finished, Piece, Ready
from paceline.tokenizer import IncrementalDecoder, Tokenizer


@dataclass(frozen=True)
class Delta:
    """What is new in answer `index`: `text` is certain, never half a character and never beyond a stop string.

    prompt_logprobs: as in `Piece`, of the first delta; empty in the others."""

    index: int
    text: str
    tokens: list[int]
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

    def push(self, pieces: list[Piece]) -> Delta:
        """Several steps as one delta."""
        tokens: list[int] = []
        logprobs: list[dict[int, float]] = []
        for piece in pieces:
            self._ending.cut(self._length, piece.tokens)
            self._length += len(piece.tokens)
            tokens += piece.tokens
            logprobs += piece.logprobs or []
        finished = pieces[-1].finished
        if finished is not None:
            self._stream.close()
        return Delta(self._index, self._stream.take(), tokens, logprobs, pieces[0].prompt_logprobs or [], finished)
