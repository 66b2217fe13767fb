"""`/tokenize` and `/detokenize`, in vLLM's shapes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from paceline.serve.errors import ApiError
from paceline.serve.protocol import DetokenizeBody, TokenizeBody
from paceline.serve.state import State, state_of

router = APIRouter()


@router.post("/tokenize", summary="The token ids of a text or of a chat")
async def tokenize(body: TokenizeBody, state: Annotated[State, Depends(state_of)]) -> dict[str, Any]:
    state.model_name(body.model)
    if body.messages is not None:
        ids = await state.encode_chat(body.messages, body.chat_template_kwargs, body.add_generation_prompt)
    else:
        ids = await state.encode(body.prompt or "", body.add_special_tokens)
    texts = [state.tokenizer.token(token) for token in ids] if body.return_token_strs else None
    return {
        "count": len(ids),
        "max_model_len": state.client.facts.max_model_len,
        "tokens": ids,
        "token_strs": texts,
    }


@router.post("/detokenize", summary="The text of token ids, special tokens included")
async def detokenize(body: DetokenizeBody, state: Annotated[State, Depends(state_of)]) -> dict[str, str]:
    state.model_name(body.model)
    if not all(0 <= token < state.client.facts.vocab_size for token in body.tokens):
        last = state.client.facts.vocab_size - 1
        raise ApiError(400, f"tokens: the model's token ids run from 0 to {last}.", param="tokens")
    return {"prompt": await asyncio.to_thread(state.tokenizer.decode, body.tokens, skip_special_tokens=False)}
