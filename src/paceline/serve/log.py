"""What the server writes down: one line of JSON an event, on stderr; and the id that a request is known by."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

QUIET = ("/health", "/ready", "/metrics")  # asked every few seconds by machines
_ID = re.compile(rb"[\w.:-]{1,128}", re.ASCII)


def log(event: str, **fields: Any) -> None:
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    say(json.dumps({"time": moment, "event": event} | fields))


def say(line: str) -> None:
    """On stderr. A full disk or a closed terminal is no reason to stop serving."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


class RequestLog:
    """One line a request, when its answer has ended. Each answer has the header X-Request-Id: the client's, if it sent
    a decent one."""

    def __init__(self, app: ASGIApp, quiet: bool) -> None:
        self._app, self._quiet = app, quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given.decode() if _ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        status, began = 0, time.monotonic()

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = name
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            if not self._quiet and scope["path"] not in QUIET:
                seconds = round(time.monotonic() - began, 4)
                asked = {"method": scope["method"], "path": scope["path"]}
                log("request", request_id=name, **asked, status=status or 500, seconds=seconds)
