"""How answers reach their client: whole, or as server-sent events; and what happens when it goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from paceline.serve.errors import DEFECT, ApiError, error_body

DONE = b"data: [DONE]\n\n"
T = TypeVar("T")
_written = json.JSONEncoder(separators=(",", ":")).encode


def event(data: dict[str, Any]) -> bytes:
    """One event; ASCII, so that no line separator of Unicode cuts it."""
    return b"data: %b\n\n" % _written(data).encode()


class EventStream(Response):
    """Whatever waits for the engine must end when its client goes away: see `Watch`, which ends with the stream."""

    media_type = "text/event-stream"

    def __init__(self, first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]], watch: Watch) -> None:
        self._first, self._chunks, self._watch = first, chunks, watch
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    @classmethod
    async def begun(
        cls, chunks: AsyncIterator[dict[str, Any]], request: Request, leave: Callable[[], None]
    ) -> EventStream:
        """After the first chunk has come: what is refused is refused before any byte of an answer is sent."""
        watch = Watch(request.receive, leave)
        try:
            return cls(await anext(chunks), chunks, watch)
        except BaseException:
            watch.end()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # A task of its own wakes up without the frames that wait for this one.
            await asyncio.create_task(self._write(send))
        finally:
            self._watch.end()

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
            await send(_part(event(error_body(500, DEFECT)), more=False))
            raise


class Watch:
    """Calls `leave` when the client goes away, and however the watch ends."""

    def __init__(self, receive: Receive, leave: Callable[[], None]) -> None:
        self._receive, self._leave = receive, leave
        self._task = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def end(self) -> None:
        self._task.cancel()
        self._leave()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], leave: Callable[[], None]) -> T:
    """What `work` returns or raises; `leave` is called when the client goes away before, and must end it."""
    watch = Watch(request.receive, leave)
    try:
        return await work
    finally:
        watch.end()


def _part(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
