"""The sampling flags: all of `SamplingParams`, whose defaults they show."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Annotated, Any

import typer

from paceline.cli.options import SAMPLING
from paceline.errors import UserError
from paceline.request import SamplingParams


def _option(*flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, rich_help_panel=SAMPLING, **settings)


Temperature = Annotated[float, _option(help="0 is greedy.")]
TopK = Annotated[int, _option(help="Only the k likeliest tokens; 0 or -1: all.")]
TopP = Annotated[float, _option(help="Only the likeliest tokens that hold this mass.")]
MinP = Annotated[float, _option(help="Only tokens at least this likely, relative to the likeliest.")]
PresencePenalty = Annotated[float, _option(help="Off the logit of every token already generated.")]
FrequencyPenalty = Annotated[float, _option(help="Off the logit, for each time the token was generated.")]
RepetitionPenalty = Annotated[float, _option(help="Divides the logits of tokens in prompt and answer; 1: off.")]
LogitBias = Annotated[str | None, _option(help="""Added to logits, as JSON: '{"123": -5}'.""", metavar="JSON")]
Seed = Annotated[int | None, _option(help="Same seed, same text.", show_default="a fresh one")]
Stop = Annotated[list[str] | None, _option(help="End before this text. May be given several times.", metavar="TEXT")]
StopTokenId = Annotated[list[int] | None, _option("--stop-token-id", help="End after this token. Repeatable.")]
IgnoreEos = Annotated[bool, _option("--ignore-eos", help="Write on past the end-of-sequence token.")]
MaxTokens = Annotated[int, _option(help="Most tokens to generate.")]
MinTokens = Annotated[int, _option(help="Fewest tokens to generate.")]
Count = Annotated[int, _option("-n", "--n", help="Answers per prompt.")]
Logprobs = Annotated[int | None, _option(help="With --json: log-probabilities of each token and of this many others.")]


def sampling_params(given: dict[str, Any]) -> SamplingParams:
    """Of a command's arguments the sampling ones; raises `UserError` for values out of range."""
    chosen = {field.name: given[field.name] for field in fields(SamplingParams) if field.name in given}
    return SamplingParams(
        **chosen
        | {
            "stop": tuple(given["stop"] or ()),
            "stop_token_ids": tuple(given["stop_token_ids"] or ()),
            "logit_bias": parse_logit_bias(given["logit_bias"]),
        }
    )


def parse_logit_bias(text: str | None) -> dict[int, float] | None:
    """`{"123": -5}` to {123: -5.0}."""
    if text is None:
        return None
    try:
        return {int(token): float(bias) for token, bias in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"""--logit-bias takes JSON that maps token ids to numbers, as in '{{"123": -5}}', not {text!r}."""
        ) from error
