"""`/v1/completions`: text that continues a prompt, or several; as text or as token ids."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from paceline.serve.answers import Usage, Whole, collect, end_fields
from paceline.serve.errors import ApiError
from paceline.serve.generation import Answers, drafts_for, sampling_params
from paceline.serve.logprobs import completion_logprobs, prompt_rows
from paceline.serve.protocol import CompletionBody
from paceline.serve.state import State, head, state_of
from paceline.serve.stream import EventStream, unless_gone
from paceline.serve.text import Delta
from paceline.tokenizer import Tokenizer

MAX_TOKENS = 16  # OpenAI's default here

router = APIRouter()


# The second path is where an OpenAI client arrives whose base URL ends in /v1/chat/completions, as in PaddleNLP's docs.
@router.post("/v1/chat/completions/completions", include_in_schema=False)
@router.post("/v1/completions", summary="Text that continues a prompt")
async def completions(body: CompletionBody, request: Request, state: Annotated[State, Depends(state_of)]) -> Response:
    model = state.model_name(body.model)
    max_tokens = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params = sampling_params(body, max_tokens, body.logprobs, _scored(body))
    drafts = drafts_for(body.speculation, state.client.facts)
    state.client.check_room(params.n)  # before any work
    prompts = await _encoded(body, state)
    echoes = await _echoes(body, prompts, state)
    answers = Answers.submit(state.client, state.tokenizer, prompts, params, drafts)
    usage = Usage(answers)
    start, shape = head("text_completion", "cmpl", model), _Shape(body, prompts, echoes, state.tokenizer)
    if not body.stream:
        wholes = await unless_gone(request, collect(answers, usage), answers.abort)
        choices = [shape.choice(number, whole) for number, whole in enumerate(wholes)]
        return JSONResponse(start | {"choices": choices, "usage": usage.as_dict()})
    return await EventStream.begun(_chunks(answers, shape, start, usage), request, answers.abort)


ROUTES = {path: (CompletionBody, completions) for path in ("/v1/completions", "/v1/chat/completions/completions")}


def _scored(body: CompletionBody) -> int | None:
    """How many of the likeliest tokens are wanted in the place of each token of the prompt."""
    wanted = (body.prompt_logprobs, body.logprobs if body.echo else None)
    return max((each for each in wanted if each is not None), default=None)


async def _encoded(body: CompletionBody, state: State) -> list[list[int]]:
    """One list of ids for each prompt."""
    given = body.prompt
    if isinstance(given, str):
        return [await state.encode(given, body.add_special_tokens)]
    if not given:
        raise ApiError(400, "The prompt is empty; give at least one token.", param="prompt")
    ids = [entry for entry in given if isinstance(entry, int)]
    if ids:
        return [ids]
    return [
        await state.encode(entry, body.add_special_tokens) if isinstance(entry, str) else entry
        for entry in given
        if not isinstance(entry, int)
    ]


async def _echoes(body: CompletionBody, prompts: list[list[int]], state: State) -> list[str]:
    """What is written before each prompt's answers."""
    if not body.echo:
        return [""] * len(prompts)
    given = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    texts = [entry for entry in given if isinstance(entry, str)]
    return texts or [state.tokenizer.decode(prompt) for prompt in prompts]


@dataclass
class _Shape:
    """How choices look. A choice begins with its prompt where that is to be echoed."""

    body: CompletionBody
    prompts: list[list[int]]
    echoes: list[str]
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        self._offsets: dict[int, int] = {}  # of choices that have begun: where the text of the next token begins

    def choice(self, number: int, part: Delta | Whole) -> dict[str, Any]:
        text, tokens = part.text, part.tokens
        rows: list[dict[int, float] | None] = [*part.logprobs]
        if self.body.echo and number not in self._offsets:
            owner = number // self.body.n
            text, tokens = self.echoes[owner] + text, self.prompts[owner] + tokens
            rows = [None, *part.prompt_logprobs, *rows]
        offset, logprobs = self._offsets.setdefault(number, 0), None
        if self.body.logprobs is not None:
            logprobs, self._offsets[number] = completion_logprobs(
                tokens, rows, self.body.logprobs, self.tokenizer, offset
            )
        choice = {"index": number, "text": text, "logprobs": logprobs} | end_fields(part.finished)
        if self.body.prompt_logprobs is not None:
            top, prompt = self.body.prompt_logprobs, self.prompts[number // self.body.n]
            choice["prompt_logprobs"] = prompt_rows(prompt, part.prompt_logprobs, top, self.tokenizer)
        return choice


async def _chunks(
    answers: Answers, shape: _Shape, start: dict[str, Any], usage: Usage
) -> AsyncIterator[dict[str, Any]]:
    options = shape.body.stream_options
    async for delta in answers.deltas():
        usage.add(delta)
        choice = shape.choice(delta.index, delta)
        if choice["text"] or choice["logprobs"] or delta.finished:
            yield start | {"choices": [choice]} | usage.of_chunk(options)
    if options.include_usage:
        yield start | {"choices": [], "usage": usage.as_dict()}
