"""Server-sent events, and what happens when the client goes away: whatever it asked for is aborted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from paceline.serve.errors import ApiError, error_body

DONE = "data: [DONE]\n\n"
T = TypeVar("T")
_written = json.JSONEncoder(separators=(",", ":")).encode


def event(data: dict[str, Any]) -> str:
    """One event; ASCII, so that no line separator of Unicode cuts it."""
    return f"data: {_written(data)}\n\n"


async def events(first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Each chunk as an event, then [DONE]; an error on the way is the last event, without [DONE]."""
    try:
        yield event(first)
        async for chunk in chunks:
            yield event(chunk)
        yield DONE
    except ApiError as error:
        yield event(error.body)
    except Exception:
        yield event(error_body(500, "The server has a defect; its log tells which."))
        raise


class EventStream(StreamingResponse):
    """Calls `leave` however it ends, also when the client left before the first event."""

    media_type = "text/event-stream"

    def __init__(self, first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]], leave: Callable[[], None]) -> None:
        super().__init__(events(first, chunks), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._leave = leave

    @classmethod
    async def begun(
        cls, chunks: AsyncIterator[dict[str, Any]], request: Request, leave: Callable[[], None]
    ) -> EventStream:
        """After the first chunk has come: what is refused is refused before any byte of an answer is sent."""
        return cls(await unless_gone(request, _first(chunks)), chunks, leave)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _first(chunks: AsyncIterator[T]) -> T:
    return await anext(chunks)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; when the client goes away before, `work` is cancelled."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client went away.")
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
