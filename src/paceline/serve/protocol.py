"""What clients send, in OpenAI's and vLLM's field names. Strict: a number is not a text, and the unknown is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from paceline.serve.body import MAX_LIST, Body, Ids, StopText, Text
from paceline.serve.fields import checked
from paceline.serve.form import FormFields
from paceline.serve.tools import ToolCalls, ToolFields
from paceline.structured import StructuredOutputsParams


class Speculation(Body):
    """How this one request is to be speculated. The text is the same whatever is asked.

    num_speculative_tokens: at most so many drafts at a time, 0 to what the server drafts; "auto" leaves it to it."""

    drafter: Text | None = None
    num_speculative_tokens: int | Literal["auto"] | None = None


class StreamOptions(Body):
    """include_usage: a last chunk with the usage of the whole request; continuous_usage_stats (vLLM's): beside that,
    the usage so far in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class Details(Body):
    """Our own extension. tokens: tell of each token who wrote it, how likely it was, and which draft it took the place
    of; at the end of an answer, how long it took."""

    tokens: bool = False


class GenerationBody(FormFields):
    """What chat and completions share. Defaults are OpenAI's where it has the parameter."""

    model: Text | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] = Field(default={}, max_length=MAX_LIST)
    seed: int | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=64)] = Field(default=[])
    stop_token_ids: Annotated[Ids, Field(max_length=MAX_LIST)] = Field(default=[])
    ignore_eos: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    n: int = 1
    prompt_logprobs: int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    speculation: Speculation = Speculation()

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, body: Any) -> Any:
        return checked(body, frozenset(cls.model_fields))

    @model_validator(mode="after")
    def _is_told_whole(self) -> Self:
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs come with a whole answer; leave them out, or stream")
        return self


class ContentPart(Body):
    """A part of a message; only text."""

    type: Literal["text"]
    text: Text


class Message(Body):
    role: Annotated[Text, Field(min_length=1, max_length=64)]
    content: Text | Annotated[list[ContentPart], Field(max_length=MAX_LIST)] = ""
    name: Text | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, body: Any) -> Any:
        """Clients send back the answers that they got, with their empty lists."""
        return {name: value for name, value in body.items() if value != []} if isinstance(body, dict) else body

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        """Only an answer may be empty: it may have called a tool."""
        if self.role != "assistant" and "content" not in self.model_fields_set:
            raise ValueError("the message has no content; write some")
        return self


class ChatBody(GenerationBody, ToolFields):
    """`text` is PaddleNLP's way to send a single question."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_LIST)] | None = None
    text: Text | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    paceline: Details = Details()
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _has_one_conversation(self) -> ChatBody:
        if (self.messages is None) == (self.text is None):
            raise ValueError("a chat needs messages, a list of objects with role and content")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true; add it, or leave top_logprobs out")
        if self.offered and super().form is not None:
            raise ValueError("tools and a form for the answer exclude each other; leave one out, or tool_choice none")
        return self

    @property
    def form(self) -> StructuredOutputsParams | None:
        return self.call_form if self.must_call else super().form


class CompletionBody(GenerationBody):
    """`prompt`: text, token ids, or a list of either."""

    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(max_length=MAX_LIST)]
        | Annotated[list[Ids], Field(max_length=MAX_LIST)]
    )
    echo: bool = False
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _can_be_done(self) -> CompletionBody:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of is not supported; leave it out, and ask for n answers")
        return self


class TokenizeBody(Body):
    """A `prompt`, or a chat's `messages`, as vLLM has it."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_LIST)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _has_one_text(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give a prompt, or messages")
        return self


class DetokenizeBody(Body):
    model: Text | None = None
    tokens: Ids
