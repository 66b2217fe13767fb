"""The form that an answer must have, in OpenAI's field (`response_format`) and in vLLM's, present and older ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from paceline.serve.body import MAX_LIST, Body, Text
from paceline.structured import StructuredOutputsParams

Schema = dict[str, Any]
OLDER = ("json", "regex", "choice", "grammar", "whitespace_pattern")  # guided_json, ...
SPACE = "guided_whitespace_pattern"


class JsonSchema(Body):
    """name, description and strict change nothing: a schema is always kept to."""

    schema_: Schema = Field(alias="schema")
    name: Text | None = None
    description: Text | None = None
    strict: bool = True


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, which needs one")
        return self


class StructuredOutputs(Body):
    """vLLM's. disable_fallback and disable_any_whitespace change nothing: there is one backend, and it writes none."""

    json_: Schema | Text | None = Field(default=None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(max_length=MAX_LIST)] | None = None
    grammar: Text | None = None
    json_object: bool = False
    whitespace_pattern: Text | None = None
    disable_fallback: bool = True
    disable_any_whitespace: bool = True


class FormFields(Body):
    """The fields of a request that ask for a form; at most one of them may."""

    response_format: ResponseFormat = ResponseFormat(type="text")
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | Text | None = None
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], Field(max_length=MAX_LIST)] | None = None
    guided_grammar: Text | None = None
    guided_whitespace_pattern: Text | None = None

    @property
    def form(self) -> StructuredOutputsParams | None:
        """What these fields ask for. Raises `UserError` when it is nothing that can be asked for."""
        given = self._asked()
        return None if given is None else StructuredOutputsParams(**given)

    @model_validator(mode="after")
    def _asks_for_one_form(self) -> FormFields:
        asked = [f"guided_{name}" for name in OLDER if getattr(self, f"guided_{name}") is not None]
        asked += ["structured_outputs"] if self.structured_outputs is not None else []
        asked += ["response_format"] if self.response_format.type != "text" else []
        if SPACE in asked and asked != ["guided_json", SPACE]:
            raise ValueError(f"{SPACE} belongs to guided_json; give both, or leave it out")
        if len(asked) > 1 and SPACE not in asked:
            raise ValueError(f"{' and '.join(asked)} exclude each other; give one of them")
        return self

    def _asked(self) -> dict[str, Any] | None:
        new, asked = self.structured_outputs, self.response_format
        if new is not None:
            off = {"disable_fallback", "disable_any_whitespace"}
            return new.model_dump(by_alias=True, exclude=off, exclude_defaults=True)
        if asked.json_schema is not None:
            return {"json": asked.json_schema.schema_}
        if asked.type == "json_object":
            return {"json_object": True}
        older = {name: value for name in OLDER if (value := getattr(self, f"guided_{name}")) is not None}
        return older or None
