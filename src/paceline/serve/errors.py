"""What a client is told when something is wrong: one sentence in OpenAI's error body, under the right HTTP status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from paceline.errors import UserError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
# For what the framework refuses by itself.
SENTENCES = {
    400: "The body cannot be read; send one JSON object in UTF-8, nested less deeply.",
    404: "There is nothing at this path; /docs lists the routes.",
    405: "This path does not take that method; /docs lists the routes.",
}
DEFECT = "The server has a defect; its log tells which."
RETRY_SECONDS = 1


class ApiError(Exception):
    """`status` is HTTP's; `param` names the field that is wrong. 429 and 503 ask the client to come again."""

    def __init__(self, status: int, sentence: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), self.param, self.code)

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}


def error_body(status: int, sentence: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}


def as_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


def answer_to(error: Exception) -> JSONResponse:
    """What the client is told when a route ends with this error; 500 for those that are defects of ours."""
    if isinstance(error, RequestValidationError):
        error = from_validation(error.errors())
    elif isinstance(error, UserError):
        error = ApiError(400, str(error))
    elif isinstance(error, HTTPException):
        sentence = SENTENCES.get(error.status_code, error.detail)
        return JSONResponse(error_body(error.status_code, sentence), error.status_code, error.headers)
    elif not isinstance(error, ApiError):
        error = ApiError(500, DEFECT)
    return as_response(error)


def add_handlers(app: FastAPI) -> None:
    """Every way in which a route can end badly becomes an OpenAI error body."""
    for kind in (ApiError, UserError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    return answer_to(error)


def from_validation(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """Of pydantic's complaints about the first field that is wrong the most precise one, as a sentence that names it.

    Example: a temperature "hot" is "temperature: Input should be a valid number."."""
    if problems[0]["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.")
    # Of a field that may be several things, each has its complaint; the deepest is about the one that was meant.
    same = [problem for problem in problems if problem["loc"][:2] == problems[0]["loc"][:2]]
    worst = max(same, key=lambda problem: len(problem["loc"]))
    where, said = _field(worst["loc"]), str(worst["msg"]).removeprefix("Value error, ").rstrip(".")
    if worst["type"] == "extra_forbidden":
        unknown = str(worst["loc"][-1])[:80]
        return ApiError(400, f"The field {unknown!r} is not known here; leave it out.", param=unknown)
    if not where:
        return ApiError(400, f"{said}.", param=(worst.get("ctx") or {}).get("field"))
    return ApiError(400, f"{'.'.join(where)[:80]}: {said}.", param=where[0])


def _field(loc: Sequence[str | int]) -> list[str]:
    """The path of a field without pydantic's names for the kinds that it may be.

    Example: ("body", "prompt", "list[int]", 1) is ["prompt", "1"]."""
    return [str(part) for part in loc[1:] if part not in ("str", "int") and "[" not in str(part)]
