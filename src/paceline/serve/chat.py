"""`/v1/chat/completions`: the next message of a conversation, whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from paceline.serve.answers import Usage, Whole, collect, end_fields
from paceline.serve.details import TokenDetails
from paceline.serve.generation import Answers, drafts_for, sampling_params
from paceline.serve.logprobs import chat_logprobs, prompt_rows
from paceline.serve.messages import Finished
from paceline.serve.protocol import ChatBody, Message
from paceline.serve.state import State, head, state_of
from paceline.serve.stream import EventStream, unless_gone
from paceline.serve.text import Delta
from paceline.serve.tool_calls import CallReader, News, news_of
from paceline.tokenizer import Tokenizer

router = APIRouter()


@router.post("/v1/chat/completions", summary="The next message of a chat")
async def chat(body: ChatBody, request: Request, state: Annotated[State, Depends(state_of)]) -> Response:
    model = state.model_name(body.model)
    answers = await _submit(body, state)
    usage = Usage(answers)
    if not body.stream:
        wholes = await unless_gone(request, collect(answers, usage), answers.abort)
        choices = [_choice(number, whole, body, state.tokenizer) for number, whole in enumerate(wholes)]
        told = {"choices": choices, "usage": usage.as_dict()} | _of_prompt(answers, wholes[0], body)
        return JSONResponse(head("chat.completion", "chatcmpl", model) | told)
    chunks = _chunks(answers, body, head("chat.completion.chunk", "chatcmpl", model), usage)
    return await EventStream.begun(chunks, request, answers.abort)


ROUTES = {"/v1/chat/completions": (ChatBody, chat)}


async def _submit(body: ChatBody, state: State) -> Answers:
    state.client.check_room(1)  # before any work
    messages = body.messages or [Message(role="user", content=body.text or "")]
    prompt = await state.encode_chat(messages, body.chat_template_kwargs, body.add_generation_prompt, body.offered)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    room = max(1, state.client.facts.max_model_len - len(prompt))
    details = body.paceline.tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else 0 if details else None
    length = room if asked is None else asked
    params = sampling_params(body, length, logprobs, body.prompt_logprobs, rejected_drafts=details)
    drafts = drafts_for(body.speculation, state.client.facts)
    return Answers.submit(state.client, state.tokenizer, [prompt], params, drafts)


def _of_prompt(answers: Answers, first: Whole, body: ChatBody) -> dict[str, Any]:
    """vLLM's field beside the choices, for those who ask for it."""
    if body.prompt_logprobs is None:
        return {}
    prompt, top = answers.jobs[0].prompt, body.prompt_logprobs
    return {"prompt_logprobs": prompt_rows(prompt, first.prompt_logprobs, top, answers.tokenizer)}


def _choice(number: int, whole: Whole, body: ChatBody, tokenizer: Tokenizer) -> dict[str, Any]:
    said = news_of(whole.text, body.must_call) if body.offered else News(whole.text)
    choice = {"index": number, "message": said.as_message(), "logprobs": _logprobs(whole, body, tokenizer)}
    told = {"paceline": TokenDetails(tokenizer).of(whole)} if body.paceline.tokens else {}
    return choice | _end(whole.finished, bool(said.names)) | told


def _role(number: int) -> dict[str, Any]:
    """How each answer of a stream begins."""
    role = {"role": "assistant", "content": ""}
    return {"index": number, "delta": role, "logprobs": None, "finish_reason": None}


def _end(finished: Finished | None, called: bool) -> dict[str, Any]:
    """As `end_fields`, but an answer that ended by itself and has called tools says so."""
    fields = end_fields(finished)
    return fields | ({"finish_reason": "tool_calls"} if called and fields["finish_reason"] == "stop" else {})


def _logprobs(part: Whole | Delta, body: ChatBody, tokenizer: Tokenizer) -> dict[str, Any] | None:
    return chat_logprobs(part.tokens, part.logprobs, body.top_logprobs or 0, tokenizer) if body.logprobs else None


async def _chunks(
    answers: Answers, body: ChatBody, start: dict[str, Any], usage: Usage
) -> AsyncIterator[dict[str, Any]]:
    """A chunk with the role for each answer, one for each delta that says something, and the usage if it is wanted."""
    tokenizer, has_begun = answers.tokenizer, False
    details = [TokenDetails(tokenizer) for _ in range(body.n)] if body.paceline.tokens else []
    readers = [CallReader(body.must_call) for _ in range(body.n)] if body.offered else []
    async for delta in answers.deltas():
        if not has_begun:  # not before: who is refused gets no chunk
            has_begun = True
            for number in range(body.n):
                yield start | {"choices": [_role(number)]} | usage.of_chunk(body.stream_options)
        usage.add(delta)
        said = readers[delta.index].read(delta.text, delta.finished is not None) if readers else News(delta.text)
        if said or delta.finished or body.logprobs or details:
            choice = {"index": delta.index, "delta": said.as_delta(), "logprobs": _logprobs(delta, body, tokenizer)}
            told = {"paceline": details[delta.index].of(delta)} if details else {}
            choice |= _end(delta.finished, bool(readers and readers[delta.index].count)) | told
            yield start | {"choices": [choice]} | usage.of_chunk(body.stream_options)
    if body.stream_options.include_usage:
        yield start | {"choices": [], "usage": usage.as_dict()}
