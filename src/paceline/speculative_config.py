"""vLLM's two ways to ask for speculation, in our options: the one place that translates them.

Its current way is a mapping, `{"method": "mtp", "num_speculative_tokens": 1}`, as `LLM(speculative_config={...})` or
as JSON after `--speculative-config`. Its older way is keywords of `LLM`: `speculative_model="[ngram]"`,
`num_speculative_tokens=5`, `ngram_prompt_lookup_max=4`. Source: vLLM's documentation of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from paceline.errors import UserError

AUTO = "auto"  # as `num_speculative_tokens`: the engine chooses
KEYS = {
    "method": "drafter",
    "model": "draft_model",
    "num_speculative_tokens": "num_speculative_tokens",
    "prompt_lookup_max": "ngram_max",
    "prompt_lookup_min": "ngram_min",
    "quantization": "draft_quantization",
}
OLDER = {
    "speculative_model": "model",
    "speculative_model_quantization": "quantization",
    "ngram_prompt_lookup_max": "prompt_lookup_max",
    "ngram_prompt_lookup_min": "prompt_lookup_min",
}
NGRAM = ("ngram", "[ngram]")
METHOD_OF = {"model": "mtp", "quantization": "mtp", "prompt_lookup_max": "ngram", "prompt_lookup_min": "ngram"}


def parse_speculative_config(text: str) -> dict[str, Any]:
    """JSON from a command line. Raises `UserError` for text that is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"""--speculative-config takes a JSON object, as in '{{"method": "mtp"}}', not {text[:60]!r}."""
        )
    return found


def translated(options: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `LLM` with those of vLLM among them replaced by ours; the same keywords if there are none.

    usual: the defaults of ours; a keyword that has its default counts as not given. Raises `UserError` for what is
    unknown, or said twice in different words."""
    older = {name: value for name, value in options.items() if name in OLDER}
    if "speculative_config" not in options and not older:
        return dict(options)
    if "speculative_config" in options and older:
        raise UserError(f"speculative_config and {next(iter(older))} exclude each other; give one of them.")
    own = {name: value for name, value in options.items() if name not in (*OLDER, "speculative_config")}
    if older:
        found = older_options(older | {name: own[name] for name in ("num_speculative_tokens",) if name in own})
    else:
        found = speculation_options(options["speculative_config"])
    for name, value in found.items():
        if own.get(name) not in (None, usual.get(name), value):
            raise UserError(
                f"{name} is {own[name]!r}, but the speculative model or config asks for {value!r}; give one."
            )
    return own | found


def speculation_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's options for vLLM's `speculative_config`.

    Without a method, a model is an MTP draft, or `ngram`. A bound of the n-grams that is not given follows the other,
    as there. Raises `UserError` for an unknown key or method.
    Example: {"method": "ngram", "prompt_lookup_max": 4} is {"drafter": "ngram", "ngram_max": 4, "ngram_min": 4}."""
    if not isinstance(config, Mapping):
        raise UserError(f"speculative_config must be a mapping, as in {{'method': 'mtp'}}, not {str(config)[:60]!r}.")
    for key in config:
        if key not in KEYS:
            raise UserError(f"speculative_config has no key {str(key)[:60]!r} here; its keys are {', '.join(KEYS)}.")
    given = {key: value for key, value in config.items() if value is not None}
    _check_kinds(given)
    drafter = _drafter(given)
    if given.get("model") in NGRAM:
        del given["model"]
    for key, method in METHOD_OF.items():
        if key in given and drafter != method:
            raise UserError(f"speculative_config: {key} belongs to method {method}; leave it out, or name that method.")
    options = {KEYS[key]: value for key, value in given.items()} | {"drafter": drafter}
    if drafter == "none":
        options["num_speculative_tokens"] = 0
    bounds = [options[name] for name in ("ngram_max", "ngram_min") if name in options]
    return options | ({"ngram_max": bounds[0], "ngram_min": bounds[-1]} if bounds else {})


def older_options(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's options for vLLM's older keywords: those of `OLDER`, and `num_speculative_tokens`.

    The shortest n-gram is one token, as there. Raises `UserError` as `speculation_options`."""
    config = {OLDER.get(name, name): value for name, value in keywords.items() if value is not None}
    if "model" not in config:
        named = " and ".join(name for name in keywords if name in OLDER)
        raise UserError(f"{named} takes a speculative_model; name one, as in speculative_model='[ngram]'.")
    if "prompt_lookup_max" in config:
        config.setdefault("prompt_lookup_min", 1)
    return speculation_options(config)


def _drafter(given: Mapping[str, Any]) -> str:
    """Our drafter for a method, or for a model without one."""
    method, model = given.get("method"), given.get("model")
    if method is None:
        method = "ngram" if model in NGRAM else "mtp"
        if isinstance(model, str) and model.startswith("[") and model not in NGRAM:
            method = model[1:].partition("]")[0]
    if method in NGRAM:
        return "ngram"
    if method == "mtp" or method.endswith("_mtp"):  # vLLM names one method a family, as deepseek_mtp
        return "mtp"
    if method == "none":
        return "none"
    raise UserError(f"Speculative method {method[:60]!r} has no drafter here; use mtp, ngram or none.")


def _check_kinds(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        kind, called = (str, "text") if key in ("method", "model", "quantization") else (int, "a whole number")
        if (key, value) == ("num_speculative_tokens", AUTO):
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"speculative_config: {key} must be {called}, not {str(value)[:60]!r}.")
