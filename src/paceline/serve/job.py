"""One prompt in the hands of the engine, seen from the web process: what came of it so far, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from paceline.request import SamplingParams
from paceline.serve.errors import ApiError
from paceline.serve.messages import Piece

NOBODY = "none"  # the drafter that guesses nothing


@dataclass(frozen=True)
class Drafts:
    """How a job is speculated. drafter: who guesses. tokens: at most so many at a time; None: as the engine thinks."""

    drafter: str
    tokens: int | None

    @property
    def named(self) -> str | None:
        """As the engine knows it."""
        return None if self.drafter == NOBODY else self.drafter


class Job:
    """`put` and `fail` are called by whoever reads the engine; `pieces` is read by one HTTP answer.

    A slow reader finds all that came meanwhile in one go, and holds nobody up."""

    def __init__(self, id: str, prompt: list[int], params: SamplingParams, drafts: Drafts) -> None:
        self.id, self.prompt, self.params = id, prompt, params
        self.drafts = drafts
        self.open = params.n  # answers that have not ended
        self._pieces: list[Piece] = []
        self._error: ApiError | None = None
        self._news = asyncio.Event()

    @property
    def ended(self) -> bool:
        return not self.open

    def put(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self.open -= piece.finished is not None
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """No more comes; what came is lost on those who have not read it."""
        self._error, self.open = error, 0
        self._news.set()

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Lists of pieces until all answers have ended. Raises `ApiError` when they cannot."""
        done = False
        while not done:
            await self._news.wait()
            self._news.clear()
            if self._error is not None:
                raise self._error
            new, self._pieces = self._pieces, []
            done = self.ended
            yield new


class Watcher(Protocol):
    """Hears of everything that happens to jobs, in order (the metrics)."""

    def arrived(self, job: Job) -> None: ...

    def piece(self, job: Job, piece: Piece) -> None: ...

    def left(self, job: Job) -> None:
        """No more comes of it, whether it ended, failed or was aborted."""
        ...

    def restarted(self) -> None:
        """The engine died and was started again."""
        ...
