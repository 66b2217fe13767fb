"""The sampling flags: all of `SamplingParams`, whose defaults they show."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from paceline.cli.groups import option
from paceline.cli.options import SAMPLING
from paceline.errors import UserError
from paceline.request import SamplingParams
from paceline.structured import MAX_LENGTH, StructuredOutputsParams

_option = partial(option, SAMPLING)

Temperature = Annotated[float, _option("0 is greedy.")]
TopK = Annotated[int, _option("Only the k likeliest tokens; 0 or -1: all.")]
TopP = Annotated[float, _option("Only the likeliest tokens that hold this mass.")]
MinP = Annotated[float, _option("Only tokens at least this likely, relative to the likeliest.")]
PresencePenalty = Annotated[float, _option("Off the logit of every token already generated.")]
FrequencyPenalty = Annotated[float, _option("Off the logit, for each time the token was generated.")]
RepetitionPenalty = Annotated[float, _option("Divides the logits of tokens in prompt and answer; 1: off.")]
LogitBias = Annotated[str | None, _option("""Added to logits, as JSON: '{"123": -5}'.""", metavar="JSON")]
Seed = Annotated[int | None, _option("Same seed, same text.", show_default="a fresh one")]
Stop = Annotated[list[str] | None, _option("End before this text. May be given several times.", metavar="TEXT")]
StopTokenId = Annotated[list[int] | None, _option("End after this token. Repeatable.", "--stop-token-id")]
IgnoreEos = Annotated[bool, _option("Write on past the end-of-sequence token.", "--ignore-eos")]
MaxTokens = Annotated[int, _option("Most tokens to generate.")]
MinTokens = Annotated[int, _option("Fewest tokens to generate.")]
Count = Annotated[int, _option("Answers per prompt.", "-n", "--n")]
JsonSchema = Annotated[str | None, _option("The answer is JSON of this schema.", metavar="FILE|JSON")]
Regex = Annotated[str | None, _option("The whole answer matches this regular expression.", metavar="TEXT")]
Choice = Annotated[list[str] | None, _option("The answer is one of these. Repeatable.", metavar="TEXT")]
Grammar = Annotated[str | None, _option("The answer follows this Lark or GBNF grammar.", metavar="FILE|TEXT")]
Logprobs = Annotated[int | None, _option("With --json: log-probabilities of each token and of this many others.")]


@dataclass(frozen=True)
class Shape:
    """How likely tokens are made what they are: what may be said of every benchmark too."""

    temperature: Temperature = SamplingParams.temperature
    top_k: TopK = SamplingParams.top_k
    top_p: TopP = SamplingParams.top_p
    min_p: MinP = SamplingParams.min_p
    presence_penalty: PresencePenalty = SamplingParams.presence_penalty
    frequency_penalty: FrequencyPenalty = SamplingParams.frequency_penalty
    repetition_penalty: RepetitionPenalty = SamplingParams.repetition_penalty


@dataclass(frozen=True)
class Answers:
    """How many answers, how they end, what form they have."""

    logit_bias: LogitBias = None
    seed: Seed = None
    stop: Stop = None
    stop_token_ids: StopTokenId = None
    ignore_eos: IgnoreEos = False
    max_tokens: MaxTokens = SamplingParams.max_tokens
    min_tokens: MinTokens = SamplingParams.min_tokens
    n: Count = SamplingParams.n
    logprobs: Logprobs = None
    json_schema: JsonSchema = None
    regex: Regex = None
    choice: Choice = None
    grammar: Grammar = None


def sampling_params(shape: Shape, answers: Answers) -> SamplingParams:
    """Raises `UserError` for values out of range."""
    plain = {field.name for field in fields(SamplingParams)} & vars(answers).keys()
    read = {
        "stop": tuple(answers.stop or ()),
        "stop_token_ids": tuple(answers.stop_token_ids or ()),
        "logit_bias": parse_logit_bias(answers.logit_bias),
        "structured_outputs": structured_outputs(answers),
    }
    return SamplingParams(**vars(shape), **{name: getattr(answers, name) for name in plain} | read)


def structured_outputs(answers: Answers) -> StructuredOutputsParams | None:
    """The form that the flags ask for; raises `UserError` for two of them."""
    flags = {"json": "--json-schema", "regex": "--regex", "choice": "--choice", "grammar": "--grammar"}
    asked: dict[str, Any] = {
        "json": answers.json_schema,
        "regex": answers.regex,
        "choice": answers.choice,
        "grammar": answers.grammar,
    }
    asked = {name: value for name, value in asked.items() if value is not None and value != []}
    if len(asked) > 1:
        raise UserError(f"{' and '.join(flags[name] for name in asked)} exclude each other; give one of them.")
    for name in asked.keys() & {"json", "grammar"}:
        asked[name] = _text_or_file(flags[name], asked[name])
    return StructuredOutputsParams(**asked) if asked else None


def _text_or_file(flag: str, given: str) -> str:
    """What a file of this name holds; else what is given, unless it can only be the name of a file."""
    path = Path(given)
    try:
        if len(given) < 1024 and path.is_file():
            return path.read_bytes()[: MAX_LENGTH + 1].decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {given} cannot be read ({error}); give a text file.") from None
    if not given.lstrip().startswith("{") and flag == "--json-schema":
        raise UserError(f"{flag} takes a schema in JSON or a file that holds one, and there is no file {given[:200]}.")
    return given


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
