"""The application: routes, in front of them the checks, and the small routes that tell how the server is."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Response
from starlette.types import ASGIApp

from paceline import __version__
from paceline.serve import chat, completions, page, tokenize
from paceline.serve.client import DOWN
from paceline.serve.direct import Direct
from paceline.serve.errors import ApiError, add_handlers
from paceline.serve.log import RequestLog
from paceline.serve.middleware import ApiKey, BodyLimit
from paceline.serve.state import State, state_of

Asked = Annotated[State, Depends(state_of)]
router = APIRouter()
GENERATING = chat.ROUTES | completions.ROUTES  # they take the short way


def make_app(state: State) -> ASGIApp:
    """CORS stays off: no page of another origin can read what this server says."""
    app = FastAPI(title="Paceline", version=__version__, redoc_url=None)
    app.state.paceline = state
    for part in (chat.router, completions.router, tokenize.router, page.router, router):
        app.include_router(part)
    add_handlers(app)
    inner: ASGIApp = Direct(app, state, GENERATING)
    if state.settings.api_keys:
        inner = ApiKey(inner, state.settings.api_keys)
    limited = BodyLimit(inner, state.settings.max_body_mib << 20)
    return RequestLog(limited, quiet=not state.settings.log_requests)


@router.get("/v1/models", summary="The model that is served, under each of its names")
async def models(state: Asked) -> dict[str, Any]:
    facts = state.client.facts
    drafters = list(dict.fromkeys((*facts.drafter.split(","), "none")))
    fixed = {
        "object": "model",
        "created": state.started,
        "owned_by": "paceline",
        "max_model_len": facts.max_model_len,
        "speculation": {"drafters": drafters, "num_speculative_tokens": facts.num_speculative_tokens},
    }
    return {"object": "list", "data": [{"id": name} | fixed for name in state.settings.served_names]}


@router.get("/v1/models/{name:path}", summary="One model")
async def model(name: str, state: Asked) -> dict[str, Any]:
    state.model_name(name)
    found: dict[str, Any] = next(
        entry for entry in (await models(state))["data"] if entry["id"] == name or name == "default"
    )
    return found


@router.get("/health", summary="200 while the engine lives, else 503")
@router.get("/ready", summary="200 when the engine takes requests, else 503")
async def health(state: Asked) -> Response:
    if not state.client.alive:
        raise ApiError(503, DOWN)
    return Response()


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": __version__}


@router.get("/metrics", summary="For Prometheus")
async def metrics(state: Asked) -> Response:
    client = state.client
    page = state.metrics.text(client.stats, client.alive)
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")
