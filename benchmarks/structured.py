"""Structured outputs: are all answers valid, are they the same without speculation, and what do masks cost?

    python benchmarks/structured.py --requests 500 --concurrency 16

Every request asks for JSON of one of five schemas, at temperature 0 or 0.8. First the same requests with speculation
and without: answers that are valid, cut off at --max-tokens, and different. Then tokens per second, in turns, of these
requests and of the same prompts as free text of the same lengths, without a drafter and with it. What a grammar forces
is checked in one pass in both. The last line is all of it as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from paceline import LLM, SamplingParams, StructuredOutputsParams
from paceline.assets import heldout_prompts
from paceline.bench.intervals import ratio
from paceline.outputs import CompletionOutput


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def a_text(longest: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": longest}


def a_list(items: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most}


COUNT = {"type": "integer", "minimum": 0, "maximum": 999}
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": an_object(name=a_text(24), age=COUNT, alive={"type": "boolean"}),
    "order": an_object(id=COUNT, items=a_list(an_object(name=a_text(12), count=COUNT), 3), note=a_text(40)),
    "verdict": an_object(answer={"enum": ["yes", "no", "unknown"]}, reason=a_text(80)),
    "place": an_object(city=a_text(16), position=an_object(north=COUNT, east=COUNT), tags=a_list(a_text(8), 3)),
    "reading": an_object(values=a_list(COUNT, 6), unit={"enum": ["m", "s", "kg"]}, valid={"type": "boolean"}),
}


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value fits a schema, as far as `SCHEMAS` go. It shares no code with what makes the answers fit."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "object":
        parts = schema["properties"]
        return (
            isinstance(value, dict)
            and value.keys() == parts.keys()
            and all(conforms(value[k], parts[k]) for k in parts)
        )
    if kind == "array":
        fits = isinstance(value, list) and len(value) <= schema["maxItems"]
        return fits and all(conforms(each, schema["items"]) for each in value)
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    return (
        isinstance(value, bool) if kind == "boolean" else isinstance(value, str) and len(value) <= schema["maxLength"]
    )


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        return conforms(json.loads(text), schema)
    except ValueError:
        return False


def run(llm: LLM, prompts: Sequence[str], params: Sequence[SamplingParams]) -> tuple[list[CompletionOutput], float]:
    """The answers, and tokens per second."""
    begun = time.perf_counter()
    answers = [result.outputs[0] for result in llm.chat([as_chat(prompt) for prompt in prompts], params)]
    return answers, sum(len(answer.token_ids) for answer in answers) / (time.perf_counter() - begun)


def as_chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{prompt} Answer in JSON."}]


def compare_answers(fast: LLM, plain: LLM, prompts: list[str], args: argparse.Namespace) -> dict[str, Any]:
    names = [list(SCHEMAS)[i % len(SCHEMAS)] for i in range(len(prompts))]
    params = [
        SamplingParams(
            structured_outputs=StructuredOutputsParams(json=SCHEMAS[name]),
            temperature=0.8 * (i % 2),
            seed=i,
            max_tokens=args.max_tokens,
        )
        for i, name in enumerate(names)
    ]
    answers, rate = run(fast, prompts, params)
    expected, plain_rate = run(plain, prompts, params)
    ended = [i for i, answer in enumerate(answers) if answer.finish_reason == "stop"]
    return {
        "requests": len(prompts),
        "ended": len(ended),
        "valid": sum(is_valid(answers[i].text, SCHEMAS[names[i]]) for i in ended),
        "cut_off": sum(answer.finish_reason == "length" for answer in answers),
        "different": sum(a.token_ids != b.token_ids for a, b in zip(answers, expected, strict=True)),
        "forced_share": share(sum(a.speculation.forced for a in answers), sum(len(a.token_ids) for a in answers)),
        "acceptance_length": share(
            sum(a.speculation.emitted for a in answers), sum(a.speculation.verifications for a in answers)
        ),
        "tokens_per_second": {"speculation": round(rate, 1), "plain": round(plain_rate, 1)},
    }


def share(part: int, of: int) -> float:
    return round(part / max(of, 1), 3)


def compare_speed(llm: LLM, prompts: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of structured and of free answers of the same lengths, at temperature 0: medians, and the ratio
    round by round with its 95 % interval."""
    schemas = list(SCHEMAS.values())
    forms = [StructuredOutputsParams(json=schemas[i % len(schemas)]) for i in range(len(prompts))]
    inside = [SamplingParams(structured_outputs=form, max_tokens=args.max_tokens) for form in forms]
    lengths = [len(answer.token_ids) for answer in run(llm, prompts, inside)[0]]
    free = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    run(llm, prompts, free)
    rounds = [(run(llm, prompts, inside)[1], run(llm, prompts, free)[1]) for _ in range(args.rounds)]
    structured, unconstrained = zip(*rounds, strict=True)
    return {
        "structured": round(median(structured), 1),
        "free": round(median(unconstrained), 1),
        "ratio": ratio(structured, unconstrained),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a checkpoint; the bundled one by default")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10, help="of the speeds")
    parser.add_argument("--timed", type=int, default=64, help="requests of a round")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    fast = LLM(args.model, threads=args.threads, max_num_seqs=args.concurrency)
    plain = fast.with_options(drafter="none")
    known = [prompt.question for prompt in heldout_prompts()]
    prompts = [known[i % len(known)] for i in range(args.requests)]
    found = {"answers": compare_answers(fast, plain, prompts, args)}
    print("answers:", found["answers"], flush=True)
    for name, llm in (("plain", plain), ("speculation", fast)):
        found[name] = compare_speed(llm, prompts[: args.timed], args)
        print(f"{name}, tokens per second:", found[name], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
