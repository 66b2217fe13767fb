"""What happens before a route is asked: the size of the body, and the key."""

from __future__ import annotations

import hmac

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paceline.serve.errors import ApiError, as_response

# Load balancers ask these, and they tell nothing; nor does the playground's page, which asks for the key itself.
OPEN = ("/health", "/ready", "/version", "/")
OPEN_FOLDER = "/playground/"


class BodyLimit:
    """413 for a body that says it is too large, and for one that becomes it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit
        self._sentence = f"The body is larger than {limit >> 20} MiB; send less at a time."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._limit:
            return await as_response(ApiError(413, self._sentence))(scope, receive, send)
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise HTTPException(413, self._sentence)
            return message

        await self._app(scope, counted, send)


class ApiKey:
    """401 without one of the keys, except for what is open. The time it takes tells nothing of how much was right."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]) or self._allowed(scope):
            return await self._app(scope, receive, send)
        sentence = "This server asks for a key: send the header 'Authorization: Bearer KEY' with the right one."
        await as_response(ApiError(401, sentence, code="invalid_api_key"))(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in OPEN or path.startswith(OPEN_FOLDER)

    def _allowed(self, scope: Scope) -> bool:
        kind, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        return kind.lower() == b"bearer" and any(matches)
