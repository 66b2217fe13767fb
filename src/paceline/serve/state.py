"""What every route needs: the engine's client, the tokenizer, the settings; and the steps that routes share."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from fastapi import Request

from paceline.serve.client import EngineClient
from paceline.serve.conversation import encoded
from paceline.serve.errors import ApiError
from paceline.serve.metrics import Metrics
from paceline.serve.protocol import Message
from paceline.serve.settings import DEFAULT_NAME, ServerSettings
from paceline.tokenizer import Tokenizer

LONG = 1024  # characters
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class State:
    settings: ServerSettings
    client: EngineClient
    tokenizer: Tokenizer
    metrics: Metrics
    started: int = field(default_factory=lambda: int(time.time()))

    def model_name(self, asked: str | None) -> str:
        """The name that the answer shows. Raises `ApiError` 404 for a model that is not served."""
        names = self.settings.served_names
        if asked is None or asked == DEFAULT_NAME:
            return names[0]
        if asked not in names:
            raise ApiError(
                404, f"There is no model {asked[:80]!r} here; this server has {', '.join(names)}.", param="model"
            )
        return asked

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return await _beside(len(text), self.tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def encode_chat(
        self,
        messages: Sequence[Message],
        variables: dict[str, Any],
        add_generation_prompt: bool,
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[int]:
        """Raises `UserError` when the model has no chat template, or it refuses the messages."""
        for name in variables:
            if name in ("self", "messages", "add_generation_prompt", "tools"):
                raise ApiError(400, f"chat_template_kwargs must not hold {name}.", param="chat_template_kwargs")
        size = LONG if tools or variables else sum(map(_size, messages))
        return await _beside(size, encoded, self.tokenizer, messages, list(tools), add_generation_prompt, variables)


def _size(message: Message) -> int:
    """Characters, at least."""
    return len(message.content) if isinstance(message.content, str) and not message.tool_calls else LONG


async def _beside(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread, so that a long text holds up nobody else; a short one takes less than the way to a thread."""
    return work(*args, **kwargs) if size < LONG else await asyncio.to_thread(work, *args, **kwargs)


async def state_of(request: Request) -> State:
    """FastAPI's way to hand a route its state (it would call a plain function in a thread)."""
    state = request.app.state.paceline
    assert isinstance(state, State)
    return state


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """What every OpenAI object begins with."""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}
