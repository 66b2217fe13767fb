"""Fields of other servers' requests that are no parameters here: those that change no token, and those we cannot do.

A harmless one is accepted and dropped. One that we cannot do is accepted with the value that leaves it off, and refused
with any other. Whatever else is unknown is refused by the models of `protocol`, where a null means "not given".
"""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticCustomError

# For the provider's books, its caches or its routing: no influence on what is generated.
HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
    }
)

# Field to the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "guided_decoding_backend": ("auto", "guidance"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "truncate_prompt_tokens": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "continue_final_message": (False,),
    "priority": (0,),
    "logits_processors": ([],),
    "echo": (False,),  # where a route does not have it
}


def checked(body: Any, known: frozenset[str]) -> Any:
    """The body without nulls, harmless fields and fields that ask for nothing.

    known: the fields that the route has itself. Raises pydantic's error that names a field we cannot do."""
    if not isinstance(body, dict):
        return body
    kept: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or (name in HARMLESS and name not in known):
            continue
        if name in known or name not in UNSUPPORTED:
            kept[name] = value
        elif not any(type(value) is type(off) and value == off for off in UNSUPPORTED[name]):
            raise PydanticCustomError("unsupported", f"{name} is not supported yet; leave it out", {"field": name})
    return kept
