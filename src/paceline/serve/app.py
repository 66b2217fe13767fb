"""The application: routes, in front of them the checks, and the small routes that tell how the server is."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Response

from paceline import __version__
from paceline.serve import chat, completions, page, tokenize
from paceline.serve.client import DOWN
from paceline.serve.errors import ApiError, add_handlers
from paceline.serve.log import RequestLog
from paceline.serve.middleware import ApiKey, BodyLimit
from paceline.serve.state import State, state_of

Asked = Annotated[State, Depends(state_of)]
router = APIRouter()


def make_app(state: State) -> FastAPI:
    """CORS stays off: no page of another origin can read what this server says."""
    app = FastAPI(title="Paceline", version=__version__, redoc_url=None)
    app.state.paceline = state
    for part in (chat.router, completions.router, tokenize.router, page.router, router):
        app.include_router(part)
    add_handlers(app)
    if state.settings.api_keys:
        app.add_middleware(ApiKey, keys=state.settings.api_keys)
    app.add_middleware(BodyLimit, limit=state.settings.max_body_mib << 20)
    app.add_middleware(RequestLog, quiet=not state.settings.log_requests)
    return app


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
