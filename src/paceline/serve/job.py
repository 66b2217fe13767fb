"""One prompt in the hands of the engine, seen from the web process: what came of it so far, and how it ends."""

from __future__ import annotations

import asyncio
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
    """`put` and `fail` are called by whoever reads the engine, `take` by one HTTP answer when there is `news`, which
    all its jobs share.

    A slow reader finds all that came meanwhile in one go, and holds nobody up."""

    def __init__(
        self, id: str, prompt: list[int], params: SamplingParams, drafts: Drafts, news: asyncio.Event | None = None
    ) -> None:
        self.id, self.prompt, self.params = id, prompt, params
        self.drafts = drafts
        self.open = params.n  # answers that have not ended
        self.news = news or asyncio.Event()
        self._pieces: dict[int, Piece] = {}  # by answer
        self._error: ApiError | None = None

    @property
    def ended(self) -> bool:
        return not self.open

    def put(self, piece: Piece) -> None:
        before = self._pieces.get(piece.index)
        self._pieces[piece.index] = piece if before is None else before.followed_by(piece)
        self.open -= piece.finished is not None
        self.news.set()

    def fail(self, error: ApiError) -> None:
        """No more comes; what came is lost on those who have not read it."""
        self._error, self.open = error, 0
        self.news.set()

    def take(self) -> list[Piece]:
        """What has come since the last time, one piece an answer. Raises `ApiError` when the job has failed."""
        if self._error is not None:
            raise self._error
        new, self._pieces = self._pieces, {}
        return list(new.values())


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
