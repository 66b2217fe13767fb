"""From messages and tools to a prompt: what the template knows is left to it, the rest is put in plain words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from paceline.errors import UserError
from paceline.serve.protocol import Message
from paceline.serve.tool_calls import written
from paceline.tokenizer import Tokenizer

Messages = list[dict[str, Any]]
INTRODUCTION = """You can call these functions:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON between tags:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""


def encoded(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: list[dict[str, Any]],
    add_generation_prompt: bool,
    variables: dict[str, Any],
) -> list[int]:
    """Token ids. Raises `UserError` when the model has no chat template, or it refuses the messages."""
    given = [as_dict(message) for message in messages]
    known = {"tools": tools} if tools and tokenizer.renders_tools else {}
    if tools and not known:
        given = introduced(given, tools)
    if not tokenizer.renders_tool_calls:
        given = [_in_words(message) for message in given]

    def ids(arguments: Callable[[str], Any]) -> list[int]:
        return tokenizer.apply_chat_template(
            [_with_arguments(message, arguments) for message in given],
            add_generation_prompt=add_generation_prompt,
            **known | variables,
        )

    try:
        return ids(_parsed)  # most templates write them as JSON themselves
    except UserError:
        if not any("tool_calls" in message for message in given):
            raise
        return ids(str)  # DeepSeek's add them to a text


def as_dict(message: Message) -> dict[str, Any]:
    """As templates read it: text parts are one text."""
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    found: dict[str, Any] = {"role": message.role, "content": text}
    found |= {} if message.name is None else {"name": message.name}
    found |= {} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id}
    return found | ({"tool_calls": [call.as_dict() for call in message.tool_calls]} if message.tool_calls else {})


def introduced(messages: Messages, tools: list[dict[str, Any]]) -> Messages:
    """The tools in the system's words, behind those that are there."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    words = INTRODUCTION.format(tools=lines)
    if messages and messages[0]["role"] == "system":
        return [messages[0] | {"content": f"{messages[0]['content']}\n\n{words}"}, *messages[1:]]
    return [{"role": "system", "content": words}, *messages]


def _in_words(message: dict[str, Any]) -> dict[str, Any]:
    """Calls and what came of them as texts, for a template that knows neither."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if "tool_calls" not in message:
        return message
    calls = [written(**call["function"]) for call in message["tool_calls"]]
    return {"role": message["role"], "content": "\n".join(filter(None, [message["content"], *calls]))}


def _with_arguments(message: dict[str, Any], change: Callable[[str], Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        call | {"function": call["function"] | {"arguments": change(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):  # a call that was cut off
        return arguments
