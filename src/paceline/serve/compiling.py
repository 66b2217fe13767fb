"""Jobs whose grammar is being compiled, in threads of the engine process: a large one holds up no step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from paceline.errors import UserError
from paceline.grammar import Grammars
from paceline.serve.messages import Add

THREADS = 2
PATIENCE = 0.005  # seconds to wait for a grammar when there is nothing else to do


class Compiling:
    """False while there is nothing to wait for."""

    def __init__(self, grammars: Grammars) -> None:
        grammars.prepare()
        self._grammars = grammars
        self._pool = ThreadPoolExecutor(THREADS, "grammar")
        self._waiting: dict[str, tuple[Add, Future[Any]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, message: Add) -> None:
        asked = message.params.structured_outputs
        assert asked is not None
        self._waiting[message.job] = message, self._pool.submit(self._grammars.compiled, asked)

    def forget(self, job: str) -> None:
        """Nothing happens for one that is not here."""
        self._waiting.pop(job, None)

    def done(self, idle: bool) -> list[tuple[Add, str | None]]:
        """Jobs that can be queued now, and those that cannot, with the sentence that says why. idle: wait a little."""
        if idle and self._waiting:
            wait([future for _, future in self._waiting.values()], PATIENCE, "FIRST_COMPLETED")
        ended = [(message, future) for message, future in self._waiting.values() if future.done()]
        for message, _ in ended:
            del self._waiting[message.job]
        return [(message, _complaint(future)) for message, future in ended]


def _complaint(future: Future[Any]) -> str | None:
    error = future.exception()
    if error is None or isinstance(error, UserError):
        return None if error is None else str(error)
    return f"The grammar cannot be used ({type(error).__name__}); give another one."  # the library's own defect
