"""What all bodies of requests share: strict kinds, Unicode texts, nulls that count as not given."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_LIST = 4096  # entries of a list in a request; prompts of token ids are bounded by the body's size


def _is_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds characters that are not Unicode (lone surrogates); remove them") from None
    return text


Text = Annotated[str, AfterValidator(_is_unicode)]
StopText = Annotated[Text, Field(min_length=1, max_length=1024)]
Ids = list[int]


class Body(BaseModel):
    # Frozen bodies may be defaults of fields as they are; others are copied for each request.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body
