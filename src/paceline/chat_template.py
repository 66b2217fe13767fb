"""A conversation to one text, by the Jinja template that came with the model, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from paceline.errors import UserError


class ChatTemplate:
    """Follows the conventions of Hugging Face templates: trimmed blocks, loop controls, `tojson` that keeps Unicode,
    `raise_exception`, `strftime_now`, and `{% generation %}` marks, which change nothing here."""

    def __init__(self, source: str) -> None:
        """variables: what it looks at beside its own; knows_calls: whether it renders calls of tools.

        Raises UserError for a template that is not valid Jinja."""
        self.knows_calls = "tool_calls" in source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        try:
            self._template = environment.from_string(source)
            self.variables = meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as problem:
            raise UserError(f"The model's chat template is not valid ({problem}): use raw prompts instead.") from None

    def render(self, messages: Sequence[Mapping[str, Any]], generation: bool, variables: Mapping[str, Any]) -> str:
        """Raises UserError with the template's own words when it refuses the messages."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=generation, **variables)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as problem:
            raise UserError(f"The model's chat template refuses these messages ({problem}): change them.") from None


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's words for training; rendering keeps its body."""

    tags = {"generation"}  # noqa: RUF012 (the base class says set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
