"""How answers reach their client: whole, or as server-sent events; and what happens when it goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from paceline.serve.errors import ApiError, error_body

DONE = b"data: [DONE]\n\n"
T = TypeVar("T")
_written = json.JSONEncoder(separators=(",", ":")).encode


def event(data: dict[str, Any]) -> bytes:
    """One event; ASCII, so that no line separator of Unicode cuts it."""
    return b"data: %b\n\n" % _written(data).encode()


class EventStream(Response):
    """Calls `leave` when the client goes away, and however it ends. What waits for the engine must end by that."""

    media_type = "text/event-stream"

    def __init__(self, first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]], leave: Callable[[], None]) -> None:
        self._first, self._chunks, self._leave = first, chunks, leave
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    @classmethod
    async def begun(
        cls, chunks: AsyncIterator[dict[str, Any]], request: Request, leave: Callable[[], None]
    ) -> EventStream:
        """After the first chunk has come: what is refused is refused before any byte of an answer is sent."""
        return cls(await unless_gone(request, _first(chunks), leave), chunks, leave)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with _watched(receive, self._leave):
                # A task of its own wakes up without the two dozen frames of framework that wait for this one.
                await asyncio.create_task(self._write(send))
        finally:
            self._leave()

    async def _write(self, send: Send) -> None:
        """Each chunk as an event, then [DONE]; an error on the way is the last event, without [DONE]."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await send(_part(event(self._first)))
            async for chunk in self._chunks:
                await send(_part(event(chunk)))
            await send(_part(DONE, more=False))
        except ApiError as error:
            await send(_part(event(error.body), more=False))
        except Exception:
            await send(_part(event(error_body(500, "The server has a defect; its log tells which.")), more=False))
            raise


def _part(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], leave: Callable[[], None]) -> T:
    """What `work` returns or raises; `leave` is called when the client goes away before, and must end it."""
    with _watched(request.receive, leave):
        return await work


@contextmanager
def _watched(receive: Receive, leave: Callable[[], None]) -> Iterator[None]:
    """`leave` is called when the client goes away."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


async def _first(chunks: AsyncIterator[T]) -> T:
    return await anext(chunks)
