"""What form an answer must have, in vLLM's names: a JSON schema, a regular expression, a choice, a grammar.

Host data only. `grammar` compiles it and follows it token by token.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from paceline.errors import UserError

# Characters of a schema or grammar. One of this size that is nothing but properties compiles for seconds.
MAX_LENGTH = 1 << 17
MAX_CHOICES = 4096


@dataclass(frozen=True)
class StructuredOutputsParams:
    """One of these forms. Raises `UserError` for none, for two, and for what is too long.

    json: a JSON schema, as text or as a mapping. json_object: any JSON object. regex: the whole answer matches it.
    choice: the answer is one of these texts. grammar: in llguidance's Lark or in llama.cpp's GBNF.
    whitespace_pattern: a regular expression of the white space between the parts of JSON; None: there is none, which is
    how OpenAI's API writes it, and what lets most of the keys be drafted for free.

    Example: `SamplingParams(structured_outputs=StructuredOutputsParams(choice=["yes", "no"]))`."""

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.json is not None and not isinstance(self.json, str):
            object.__setattr__(self, "json", _as_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        object.__setattr__(self, "json_object", self.json_object or None)
        given = [name for name in FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise UserError(f"structured_outputs takes one of {', '.join(FORMS)}, and this has {found}.")
        for name in ("json", "regex", "grammar", "whitespace_pattern"):
            if len(getattr(self, name) or "") > MAX_LENGTH:
                raise UserError(f"{name} is longer than {MAX_LENGTH} characters; give a shorter one.")
        if self.whitespace_pattern is not None and self.form not in ("json", "json_object"):
            raise UserError(f"whitespace_pattern belongs to json and json_object; leave it out beside {self.form}.")

    @property
    def form(self) -> str:
        """The name of the form that was asked for."""
        return next(name for name in FORMS if getattr(self, name) is not None)


FORMS = tuple(field.name for field in fields(StructuredOutputsParams) if field.name != "whitespace_pattern")


def _as_text(schema: Any) -> str:
    try:
        return jsonlib.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"The JSON schema is not JSON ({error}); give a mapping of plain values.") from None


def _choices(given: Sequence[str]) -> tuple[str, ...]:
    choices = () if isinstance(given, str) else tuple(given)
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise UserError("choice takes a list of texts, and at least one.")
    if len(choices) > MAX_CHOICES or sum(map(len, choices)) > MAX_LENGTH:
        raise UserError(f"choice holds more than {MAX_CHOICES} texts or {MAX_LENGTH} characters; give less.")
    return choices
