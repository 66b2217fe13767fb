"""Calls of tools in an answer's text: found as it comes, the name first and the arguments piece by piece.

Two ways of writing them are known. Hermes's, which many models follow: `{"name": ..., "arguments": {...}}` between
`<tool_call>` and `</tool_call>`. DeepSeek's: between its tags "tool call begin" and "tool call end" the word
`function`, a "tool sep", the name, and the arguments in a code block; V3.1 has the name, a "tool sep" and the bare
arguments. What looks like a call and is none stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class _Style:
    """begin, end: the tags around a call; head: what comes before its arguments, `name` being a group of it."""

    begin: str
    end: str
    head: re.Pattern[str]


def _deepseek(words: str) -> str:
    """Its tags are written with full-width bars, and low blocks for blanks."""
    return f"<\uff5c{words.replace(' ', chr(0x2581))}\uff5c>"


_NAME, _SEP = r'(?P<name>[^"\\<>\s]{1,64})', _deepseek("tool sep")
_HERMES_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*"{_NAME}"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')
_DEEPSEEK_HEAD = re.compile(rf"\s*(?:function{_SEP})?{_NAME}(?:{_SEP}|\s*```json)\s*(?=\{{)")
_STYLES = (
    _Style("<tool_call>", "</tool_call>", _HERMES_HEAD),
    _Style(_deepseek("tool call begin"), _deepseek("tool call end"), _DEEPSEEK_HEAD),
)
_FORCED = _Style("", "", _HERMES_HEAD)  # nothing but the call
_AROUND = (_deepseek("tool calls begin"), _deepseek("tool calls end"))  # around all calls
_LONGEST_HEAD = 1024  # characters


@dataclass
class News:
    """What a piece of an answer's text brought. calls: by number, a name for one that begins, and more arguments."""

    content: str = ""
    names: dict[int, str] = field(default_factory=dict)
    arguments: dict[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.content or self.names or self.arguments)

    def as_delta(self) -> dict[str, Any]:
        """As OpenAI streams it."""
        calls = [self._call(number) for number in sorted(self.names.keys() | self.arguments.keys())]
        said = {"content": self.content} if self.content else {}
        return said | ({"tool_calls": calls} if calls else {})

    def as_message(self) -> dict[str, Any]:
        """Of a whole answer."""
        calls = self.as_delta().get("tool_calls", [])
        for call in calls:
            del call["index"]
        content = None if calls and not self.content.strip() else self.content
        return {"role": "assistant", "content": content, "refusal": None} | ({"tool_calls": calls} if calls else {})

    def _call(self, number: int) -> dict[str, Any]:
        arguments = self.arguments.get(number, "")
        if number not in self.names:
            return {"index": number, "function": {"arguments": arguments}}
        function = {"name": self.names[number], "arguments": arguments}
        return {"index": number, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class CallReader:
    """Reads one answer. forced: it is one call, without tags. `count`: calls so far."""

    def __init__(self, forced: bool = False) -> None:
        self._rest = ""
        self._style: _Style | None = _FORCED if forced else None
        self._value: _Value | None = None
        self._passed = False  # the arguments of this call have ended
        self.count = 0

    def read(self, text: str, last: bool) -> News:
        """What more text brings. last: no more comes, and a call that has not shown its name is no call."""
        self._rest += text
        news = News()
        while self._advance(news):
            pass
        if last and self._value is None and not self._passed:
            news.content += (self._style.begin if self._style is not None else "") + self._rest
            self._rest = ""
        return news

    def _advance(self, news: News) -> bool:
        """One step; whether another one may follow."""
        if self._style is None:
            return self._outside(news)
        if self._value is not None:
            return self._in_arguments(news)
        return self._behind(self._style) if self._passed else self._in_head(news, self._style)

    def _outside(self, news: News) -> bool:
        found = [(at, tag) for tag in _tags() if (at := self._rest.find(tag)) >= 0]
        if not found:
            held = _held_back(self._rest)
            news.content += self._rest[: len(self._rest) - held]
            self._rest = self._rest[len(self._rest) - held :]
            return False
        at, tag = min(found)
        news.content += self._rest[:at]
        self._rest = self._rest[at + len(tag) :]
        self._style = next((style for style in _STYLES if style.begin == tag), None)
        return True

    def _in_head(self, news: News, style: _Style) -> bool:
        end = self._rest.find(style.end) if style.end else -1
        head = style.head.match(self._rest)
        if head is not None:
            self._rest, self._value = self._rest[head.end() :], _Value()
            news.names[self.count], news.arguments[self.count] = head["name"], ""
            self.count += 1
            return True
        if end < 0 and len(self._rest) <= _LONGEST_HEAD:
            return False
        stop = end + len(style.end) if end >= 0 else len(self._rest)
        news.content += style.begin + self._rest[:stop]  # no call
        self._rest, self._style = self._rest[stop:], None
        return True

    def _in_arguments(self, news: News) -> bool:
        assert self._value is not None
        taken = self._value.take(self._rest)
        number = self.count - 1
        news.arguments[number] = news.arguments.get(number, "") + self._rest[:taken]
        self._rest = self._rest[taken:]
        if self._value.ended:
            self._value, self._passed = None, True
        return self._passed

    def _behind(self, style: _Style) -> bool:
        """To the end of the call; what stands before its tag says nothing."""
        at = self._rest.find(style.end) if style.end else -1
        if at < 0:
            self._rest = self._rest[-len(style.end) :] if style.end else ""
            return False
        self._rest, self._style, self._passed = self._rest[at + len(style.end) :], None, False
        return True


class _Value:
    """Where a JSON object that begins here ends, by its braces outside of strings."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False
        self.ended = False

    def take(self, text: str) -> int:
        """How many characters still belong to it."""
        for place, character in enumerate(text):
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._quoted = True
            elif character in "{}[]":
                self._depth += 1 if character in "{[" else -1
                if self._depth == 0:
                    self.ended = True
                    return place + 1
        return len(text)


def news_of(text: str, forced: bool) -> News:
    """A whole answer. Example: `Hi <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>` is the content `Hi `
    and one call of f with the arguments `{"a": 1}`."""
    return CallReader(forced).read(text, last=True)


def written(name: str, arguments: str) -> str:
    """A call as models write it, for a template that does not know calls."""
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'


def _tags() -> Iterator[str]:
    yield from (style.begin for style in _STYLES)
    yield from _AROUND


def _held_back(text: str) -> int:
    """The longest end of the text that begins a tag."""
    return max((n for tag in _tags() for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), default=0)
