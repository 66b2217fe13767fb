"""Tools as OpenAI's API has them: what clients may call, what an answer has to call, and calls in a conversation."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from paceline.serve.body import MAX_LIST, Body, Text
from paceline.structured import StructuredOutputsParams

MAX_TOOLS = 128
Name = Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class Function(Body):
    """strict changes nothing: arguments that have to be given keep to their schema."""

    name: Name
    description: Text = ""
    parameters: dict[str, Any] = Field(default={})
    strict: bool = False


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class FunctionCall(Body):
    name: Name
    arguments: Text = "{}"


class ToolCall(Body):
    """A call in a conversation, as an answer brought it."""

    function: FunctionCall
    type: Literal["function"] = "function"
    id: Text = ""
    index: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": self.function.model_dump()}


class ToolFields(Body):
    """parallel_tool_calls changes nothing: an answer that has to call does so once, a free one as often as it likes."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(default=[])
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _names_fit(self) -> ToolFields:
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name; give each its own")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name}, which is none of the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is required, and there are no tools; give some")
        return self

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model is told of, as templates read them."""
        return [] if self.tool_choice == "none" else [tool.model_dump(exclude_unset=True) for tool in self.tools]

    @property
    def must_call(self) -> bool:
        return self.tool_choice not in ("none", "auto")

    @property
    def call_form(self) -> StructuredOutputsParams:
        """The form of a call of one of the functions that may be called where one has to be. Raises `UserError`."""
        chosen = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        functions = [tool.function for tool in self.tools if chosen in (None, tool.function.name)]
        return StructuredOutputsParams(grammar=call_grammar(functions))


def call_grammar(functions: list[Function]) -> str:
    """In Lark: `{"name": "f", "arguments": ...}`, the arguments by each function's own schema."""
    rules = [f"start: {' | '.join(f'call_{i}' for i in range(len(functions)))}"]
    for i, function in enumerate(functions):
        schema = (function.parameters or NO_PARAMETERS) | {"x-guidance": {"whitespace_flexible": False}}
        begin = f'{{"name": {json.dumps(function.name)}, "arguments": '
        rules += [f'call_{i}: {json.dumps(begin)} arguments_{i} "}}"', f"arguments_{i}: %json {json.dumps(schema)}"]
    return "\n".join(rules)


ToolCalls = Annotated[list[ToolCall], Field(max_length=MAX_LIST)]
