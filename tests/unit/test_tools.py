"""Tools without a server: calls read from text in any pieces, conversations as templates get them, forced calls."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import TEMPLATE, tiny_tokenizer
from paceline.grammar import Grammars
from paceline.serve.conversation import encoded
from paceline.serve.protocol import ChatBody, Message
from paceline.serve.tool_calls import CallReader, News, news_of, written
from paceline.serve.tools import MAX_TOOLS
from paceline.tokenizer import Tokenizer

BAR, LOW = "\uff5c", "\u2581"
CALL, END, SEP = (f"<{BAR}tool{LOW}{word}{BAR}>" for word in (f"call{LOW}begin", f"call{LOW}end", "sep"))
CALLS, CALLS_END = (f"<{BAR}tool{LOW}calls{LOW}{word}{BAR}>" for word in ("begin", "end"))
ARGUMENTS = st.dictionaries(
    st.text(max_size=4),
    st.text(max_size=8) | st.integers() | st.lists(st.booleans() | st.just({"}": "{"}), max_size=2),
    max_size=3,
)


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def deepseek(name: str, arguments: str) -> str:
    return f"{CALLS}{CALL}function{SEP}{name}\n```json\n{arguments}\n```{END}{CALLS_END}"


def deepseek_later(name: str, arguments: str) -> str:
    return f"{CALLS}{CALL}{name}{SEP}{arguments}{END}{CALLS_END}"


def in_pieces(text: str, cuts: list[int], forced: bool = False) -> list[News]:
    reader = CallReader(forced)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    return [reader.read(piece, last=i == len(pieces) - 1) for i, piece in enumerate(pieces)]


def joined(news: list[News]) -> tuple[str, list[tuple[str, str]]]:
    """The content, and a name and arguments for each call."""
    names = {number: name for each in news for number, name in each.names.items()}
    arguments = ["".join(each.arguments.get(number, "") for each in news) for number in names]
    return "".join(each.content for each in news), list(zip(names.values(), arguments, strict=True))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([hermes, deepseek, deepseek_later]), st.sampled_from(["f", "get_x"]), ARGUMENTS),
        max_size=3,
    ),
    st.lists(st.integers(0, 999), max_size=12),
    st.sampled_from(["", "Let me see. ", "1 < 2 <tool", "a <b> "]),
)
def test_calls_are_found_in_any_pieces(calls: list[Any], cuts: list[int], before: str) -> None:
    """Strings with braces, quotes and escapes among the arguments; text around them."""
    texts = [json.dumps(arguments) for _, _, arguments in calls]
    text = before + "".join(f"{style(name, raw)}." for (style, name, _), raw in zip(calls, texts, strict=True))
    content, found = joined(in_pieces(text, cuts))
    assert content == before + "." * len(calls)
    assert found == [(name, raw) for (_, name, _), raw in zip(calls, texts, strict=True)]
    assert joined([news_of(text, forced=False)]) == (content, found)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>nothing</tool_call> and on",
        '<tool_call>{"arguments": {}, "name": "f"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "text"}</tool_call>',
        '<tool_call>{"name": "f"',
        "<tool_call>" + "x" * 5000,
        "a <tool_cal",
        "",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    for cuts in ([], list(range(0, len(text), 7))):
        assert joined(in_pieces(text, cuts)) == (text, [])


def test_a_call_that_is_cut_off_shows_what_there_is() -> None:
    assert joined([news_of('<tool_call>{"name": "f", "arguments": {"a": "b', forced=False)]) == (
        "",
        [("f", '{"a": "b')],
    )
    assert joined(in_pieces('{"name": "f", "arguments": {"a": 1}}', [30], forced=True)) == ("", [("f", '{"a": 1}')])


def test_news_in_openais_shapes() -> None:
    first, second = in_pieces('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', [41])
    (call,) = first.as_delta()["tool_calls"]
    assert call["index"] == 0 and call["type"] == "function" and call["id"].startswith("call_")
    assert call["function"]["name"] == "f"
    assert second.as_delta() == {"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]}
    message = news_of(' <tool_call>{"name": "f", "arguments": {}}</tool_call>', forced=False).as_message()
    assert message["content"] is None and "index" not in message["tool_calls"][0]
    assert news_of("hi", forced=False).as_message() == {"role": "assistant", "content": "hi", "refusal": None}


TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "now"}},
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    },
]
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "the time?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "noon"},
]
KNOWS = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}!{{ c.function.name }}:{{ c.function.arguments ARGUMENTS }}{% endfor %}"
    "{% endfor %}"
)


def shown(template: str, tools: list[dict[str, Any]], talk: list[dict[str, Any]]) -> str:
    tokenizer = Tokenizer(tiny_tokenizer(), {"bos_token": "<|bos|>"}, template=template)
    ids = encoded(tokenizer, [Message.model_validate(each) for each in talk], tools, True, {})
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_a_template_that_knows_tools_gets_them() -> None:
    """Arguments as an object where it writes JSON, as text where it adds texts."""
    as_json = shown(KNOWS.replace("ARGUMENTS", "| tojson"), TOOLS, TALK)
    assert as_json == '[now][add]<user>the time?<assistant>!now:{"a": 1}<tool>noon'
    assert shown(KNOWS.replace("ARGUMENTS", "+ ''"), TOOLS, TALK) == as_json


def test_a_template_that_knows_none_gets_words() -> None:
    said = shown(TEMPLATE, TOOLS, [{"role": "system", "content": "Be kind."}, *TALK])
    system, rest = said.split("<|user|>", 1)
    assert system.startswith("<|bos|><|system|>Be kind.\n\n") and '{"name": "now"}' in system
    call = written("now", '{"a": 1}')
    assert f"<|assistant|>{call}" in rest
    assert "<|user|><tool_response>\nnoon\n</tool_response><|assistant|>" in rest
    assert shown(TEMPLATE, [], TALK[:1]) == "<|bos|><|user|>the time?<|assistant|>"


def body(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"messages": [{"role": "user", "content": "x"}], "tools": TOOLS} | fields)


@pytest.mark.parametrize(
    ("choice", "texts", "others"),
    [
        (
            "required",
            ['{"name": "now", "arguments": {}}', '{"name": "add", "arguments": {"a":1}}'],
            ['{"name": "no', '{"a'],
        ),
        ({"type": "function", "function": {"name": "now"}}, ['{"name": "now", "arguments": {}}'], ['{"name": "a']),
    ],
)
def test_a_forced_call_is_one_of_the_functions(choice: Any, texts: list[str], others: list[str]) -> None:
    asked = body(tool_choice=choice)
    assert asked.must_call and asked.form is not None
    tokenizer = Tokenizer(tiny_tokenizer())
    for text in texts:
        ids = tokenizer.encode(text)
        grammar = Grammars(tokenizer, 320, [1]).start(asked.form)
        assert grammar.allowed(ids) == len(ids) and [grammar.commit(token) for token in ids][-1]
    for text in others[1:]:
        assert Grammars(tokenizer, 320, [1]).start(asked.form).allowed(tokenizer.encode(text)) < len(
            tokenizer.encode(text)
        )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tool_choice": "often"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "gone"}}}, "gone"),
        ({"tools": TOOLS * 2}, "same name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "pattern"),
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(MAX_TOOLS + 1)]}, "128"),
        ({"response_format": {"type": "json_object"}}, "exclude each other"),
    ],
)
def test_tools_that_make_no_sense_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        body(**fields)


def test_tools_that_are_not_to_be_called_are_not_told_of() -> None:
    assert body(tool_choice="none").offered == [] and body(tool_choice="none").form is None
    assert [tool["function"]["name"] for tool in body().offered] == ["now", "add"] and body().form is None
