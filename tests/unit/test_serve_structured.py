"""Structured outputs and tools over HTTP, with the bundled model: what clients of OpenAI and vLLM send and get."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pydantic
import pytest
from servers import PATIENCE, Served, serving

from paceline import LLM, SamplingParams, StructuredOutputsParams

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["c", "f"]},
        "day": {"type": "integer", "minimum": 1, "maximum": 31},
    },
    "required": ["city", "unit", "day"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Of a day", "parameters": SCHEMA, "strict": True},
    },
    {"type": "function", "function": {"name": "now"}},
]


class Weather(pydantic.BaseModel):
    sky: Literal["clear", "grey"]
    warm: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("structured") / "log", "--threads", "1") as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE, _strict_response_validation=True
    ) as found:
        yield found


def said(server: Served, **body: Any) -> str:
    choice = server.answer(CHAT, {"messages": MESSAGES, "max_tokens": 90, "seed": 3} | body)["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"])


def fits(text: str) -> bool:
    """Whether a text is JSON of `SCHEMA`."""
    found = json.loads(text)
    return (
        list(found) == ["city", "unit", "day"]
        and isinstance(found["city"], str)
        and len(found["city"]) <= 12
        and found["unit"] in ("c", "f")
        and type(found["day"]) is int
        and 1 <= found["day"] <= 31
    )


def test_every_way_to_ask_for_a_schema_is_the_same(server: Served) -> None:
    ways: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}, "response_format": {"type": "text"}},
        {"guided_json": SCHEMA, "guided_decoding_backend": "auto"},
        {"guided_json": json.dumps(SCHEMA)},
    ]
    (text,) = {said(server, **way) for way in ways}
    assert fits(text)


def test_every_form(server: Served) -> None:
    for field in ("structured_outputs", "guided"):

        def ask(form: str, value: Any, field: str = field) -> str:
            return said(server, **({f"guided_{form}": value} if field == "guided" else {field: {form: value}}))

        assert re.fullmatch(r"[a-z]{3,6} [0-9]{2}", ask("regex", "[a-z]{3,6} [0-9]{2}"))
        assert ask("choice", ["grey", "clear skies"]) in ("grey", "clear skies")
        assert re.fullmatch("sun( and sun)+", ask("grammar", 'root ::= "sun" (" and sun"){1,3}'))
    text = said(server, guided_json=SCHEMA, guided_whitespace_pattern="\n")
    assert fits(text) and "\n" in text


def test_the_text_does_not_depend_on_the_speculation(server: Served) -> None:
    """Answers at once, forms mixed: those of the Python API without speculation; and forced tokens are told."""
    llm = LLM(threads=1, drafter="none")
    forms: list[dict[str, Any]] = [{"json": SCHEMA}, {"regex": "[a-z ]{5,20}[.]"}, {"choice": ["grey", "green"]}]
    asked = [
        {
            "prompt": f"Day {i}:",
            "seed": i,
            "temperature": 0.8 * (i % 2),
            "max_tokens": 90,
            "structured_outputs": forms[i % 3],
        }
        for i in range(12)
    ]
    params = [
        SamplingParams(
            seed=i,
            temperature=body["temperature"],
            max_tokens=90,
            structured_outputs=StructuredOutputsParams(**forms[i % 3]),
        )
        for i, body in enumerate(asked)
    ]
    offline = [result.outputs[0].text for result in llm.generate([body["prompt"] for body in asked], params)]
    for speculation in ({}, {"num_speculative_tokens": 2}, {"drafter": "none"}):
        with ThreadPoolExecutor(12) as pool:
            bodies = [body | {"speculation": speculation} for body in asked]
            found = list(pool.map(lambda body: server.answer(COMPLETIONS, body), bodies))
        assert [answer["choices"][0]["text"] for answer in found] == offline
        forced = sum(answer["usage"]["speculation"]["forced"] for answer in found)
        assert forced > 20 if speculation.get("drafter") != "none" else forced == 0
    assert all(fits(text) for text in offline[::3])


def test_pydantic_models_come_back(client: openai.OpenAI) -> None:
    fixed: dict[str, Any] = {"model": "default", "messages": MESSAGES, "max_tokens": 60, "seed": 1}
    parsed = client.chat.completions.parse(response_format=Weather, **fixed).choices[0].message.parsed
    assert isinstance(parsed, Weather)
    with client.chat.completions.stream(response_format=Weather, **fixed) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == parsed
    called = client.chat.completions.parse(
        tools=[openai.pydantic_function_tool(Weather)], tool_choice="required", **fixed
    )
    (call,) = called.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "now"}}])
def test_a_call_that_has_to_come(client: openai.OpenAI, choice: Any) -> None:
    """Whole and streamed: the name first, then its arguments; and a conversation goes on behind it."""
    fixed: dict[str, Any] = {"model": "default", "messages": MESSAGES, "max_tokens": 90, "seed": 5, "tools": TOOLS}
    answer = client.chat.completions.create(**fixed, tool_choice=choice, n=2)
    for each in answer.choices:
        (call,) = each.message.tool_calls or []
        assert each.finish_reason == "tool_calls" and each.message.content is None
        assert isinstance(call, openai.types.chat.ChatCompletionMessageFunctionToolCall)
        assert call.function.arguments == "{}" if call.function.name == "now" else fits(call.function.arguments)
        assert call.function.name == "now" if choice != "required" else True
    message = answer.choices[0].message
    (call,) = message.tool_calls or []
    chunks = list(client.chat.completions.create(**fixed, tool_choice=choice, stream=True))
    news = [new for chunk in chunks for new in chunk.choices[0].delta.tool_calls or []]
    assert chunks[-1].choices[0].finish_reason == "tool_calls" and not any(
        c.choices[0].delta.content for c in chunks[1:]
    )
    assert news[0].id and news[0].function and not any(new.id for new in news[1:])
    assert [new.function.name for new in news if new.function and new.function.name] == [call.function.name]  # type: ignore[union-attr]
    assert "".join(new.function.arguments or "" for new in news if new.function) == call.function.arguments  # type: ignore[union-attr]
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "3 degrees"}
    talk = [*MESSAGES, message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(**(fixed | {"messages": talk}))
    assert after.choices[0].message.role == "assistant"


def test_tools_that_may_be_called(server: Served) -> None:
    """The model is told of them, unless it shall call none; what it says is text as long as it calls nothing."""
    fixed = {"messages": MESSAGES, "max_tokens": 12, "seed": 1, "tools": TOOLS}
    free, told = (server.answer(CHAT, fixed | {"tool_choice": choice}) for choice in ("none", "auto"))
    assert told["usage"]["prompt_tokens"] > free["usage"]["prompt_tokens"]
    untold = server.answer(CHAT, {key: value for key, value in fixed.items() if key != "tools"})
    assert untold["choices"][0]["message"] == free["choices"][0]["message"]
    assert told["choices"][0]["message"]["content"] and "tool_calls" not in told["choices"][0]["message"]


HUGE = {
    "type": "object",
    "properties": {f"p{i}": {"type": "integer"} for i in range(2500)},
    "additionalProperties": False,
}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"guided_regex": "("}, "unclosed group"),
    ({"guided_regex": "(?=a)"}, "look-around"),
    ({"guided_regex": "a" * 200_000}, "longer"),
    ({"guided_regex": "(" * 50_000}, "regex"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "exclude each other"),
    ({"guided_regex": "a", "guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ({"guided_choice": []}, "choice"),
    ({"guided_choice": [1]}, "guided_choice"),
    ({"guided_grammar": "nothing"}, "grammar"),
    ({"guided_grammar": "start: a\na: a"}, "no text"),
    ({"guided_json": "no"}, "JSON schema"),
    ({"guided_json": {"type": "zzz"}}, "zzz"),
    ({"guided_json": {"$ref": "#"}}, "no text"),
    ({"guided_json": HUGE}, "cannot go on"),
    ({"guided_grammar": 'start: a\na: "a" b\nb: "b" a'}, "cannot go on"),
    ({"guided_json": {"a": "\ud800"}}, "JSON schema"),
    ({"structured_outputs": {}}, "none of them"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, "json and regex"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
    ({"response_format": {"type": "json_schema"}}, "json_schema"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "exclude each other"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ({"tools": TOOLS, "guided_regex": "a"}, "exclude each other"),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "zzz"}}}],
            "tool_choice": "required",
        },
        "zzz",
    ),
    ({"tool_choice": "required"}, "no tools"),
    ({"tools": TOOLS, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_with_the_reason(server: Served, stream: bool) -> None:
    """And the engine goes on."""
    for fields, named in BAD:
        body = {"messages": MESSAGES, "max_tokens": 20, "temperature": 0} | fields
        content = json.dumps(body | ({"stream": True} if stream else {})).encode()
        response = server.post(CHAT, content=content, headers={"Content-Type": "application/json"})
        if response.status_code == 200 and stream:  # it went well for some tokens
            *_, last = [line for line in response.text.splitlines() if line]
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            assert response.status_code == 400, (fields, response.text)
            error = response.json()["error"]
        assert named in error["message"] and error["message"].endswith("."), error
    assert said(server, guided_choice=["a"]) == "a"


def test_a_long_compilation_holds_up_nobody(server: Served) -> None:
    """Answers that need no grammar come while a hostile one is compiled."""
    slow = {"messages": MESSAGES, "max_tokens": 2, "guided_json": HUGE}
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(server.post, CHAT, slow)
        assert server.answer(CHAT, {"messages": MESSAGES, "max_tokens": 4})["choices"]
        assert refused.result().status_code in (200, 400)
    assert server.metric("engine_restarts_total") == 0 and server.metric("num_requests_running") == 0
