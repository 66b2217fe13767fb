"""The shortest way to the routes that generate: from the bytes of a body to its answer, with no framework between.

FastAPI's own way there (its routers, dependencies, stacks of contexts) took half of the processor time of a request. It
keeps the routes, for the document and for whatever comes in another shape, and both ways call the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from paceline.serve.body import Body
from paceline.serve.errors import answer_to
from paceline.serve.state import State

JSON = b"application/json"
Answer = Callable[[Any, Request, State], Awaitable[Response]]


class Direct:
    """routes: by path, the kind of body that is posted there and what answers it. All else goes to `app`."""

    def __init__(self, app: ASGIApp, state: State, routes: Mapping[str, tuple[type[Body], Answer]]) -> None:
        self._app, self._state, self._routes = app, state, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None or _media_type(scope) != JSON:
            return await self._app(scope, receive, send)
        try:
            response = await self._answered(*route, Request(scope, receive))
        except Exception as error:
            response = answer_to(error)
            await response(scope, receive, send)
            if response.status_code == 500:
                raise  # for the log
            return
        await response(scope, receive, send)

    async def _answered(self, kind: type[Body], answer: Answer, request: Request) -> Response:
        try:
            content = await request.body()
        except ClientDisconnect:
            raise HTTPException(400) from None
        return await answer(parsed(content, kind), request, self._state)


def parsed(content: bytes, kind: type[Body]) -> Body:
    """Raises what FastAPI raises for a body that is wrong."""
    try:
        return kind.model_validate(json.loads(content), from_attributes=True)  # as FastAPI does
    except ValidationError as error:
        problems = [problem | {"loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise RequestValidationError(problems) from None
    except json.JSONDecodeError:
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": ""}]) from None
    except (ValueError, RecursionError):
        raise HTTPException(400) from None


def _media_type(scope: Scope) -> bytes:
    kind: bytes = dict(scope["headers"]).get(b"content-type", b"")
    return kind.partition(b";")[0]
