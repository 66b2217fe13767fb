"""A table of another system's flags, and the one parser that reads a command line by such a table.

Understood are `--flag value`, `--flag=value`, one dash for two, dashes for underscores, truth values bare
(`--flag`), negated (`--noflag`) or as a word (`--flag 1`, `--flag=false`), and lists (`--flag 128 128`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite
from typing import Any

from paceline.errors import UserError

Value = str | int | float | bool | tuple[int, ...]
TRUTH = dict.fromkeys(("true", "1", "yes", "y", "t", "on"), True) | dict.fromkeys(
    ("false", "0", "no", "n", "f", "off"), False
)


def _truth(text: str) -> bool:
    return TRUTH[text.strip().lower()]


def _number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(text)
    return number


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip("[]()").replace(",", " ").split())


# kind of value -> how it is read, and what an error calls it
READERS: dict[type, tuple[Callable[[str], Value], str]] = {
    str: (str, "text"),
    int: (int, "a whole number"),
    float: (_number, "a number"),
    bool: (_truth, "true or false"),
    tuple: (_whole_numbers, "whole numbers"),
}


@dataclass(frozen=True)
class Flag:
    """One flag of another system, and what becomes of it here.

    name: without dashes. kind: of its value there: str, int, float, bool, or tuple (whole numbers). to: our option that
    takes the value. words: the values it may have, and what each is here. default: taken when the flag is not given
    (None: our own default). fits: values that ask for what happens here anyway. With any other value, `note` is said,
    or `refuse` is the error. help: what it does here that `to` does not tell."""

    name: str
    kind: type = str
    to: str = ""
    words: Mapping[str, Any] | None = None
    default: Any = None
    fits: tuple[Value, ...] = ()
    note: str = ""
    refuse: str = ""
    help: str = ""

    def read(self, text: str) -> Value:
        """Raises `UserError` for text that is no value of this flag."""
        reader, called = READERS[self.kind]
        try:
            value = reader(text)
        except (KeyError, ValueError):
            raise UserError(f"--{self.name} takes {called}, not {text[:60]!r}.") from None
        if self.words is not None and value not in self.words:
            known = ", ".join(word for word in self.words if word)
            raise UserError(f"--{self.name} {str(value)[:60]!r} is not known here; use one of {known}.")
        return value

    def remark(self, value: Value) -> str:
        """What is to be said of this value; empty if nothing. Raises `UserError` if it is refused."""
        if value in self.fits:
            return ""
        shown = f"--{self.name}={shown_value(value)}"
        if self.refuse:
            raise UserError(f"{shown} cannot be had: {self.refuse}.")
        return f"{shown}: {self.note}." if self.note else ""


@dataclass
class Line:
    """A command line as read by `flags`: what was given, under the names of there, and what is to be said of it."""

    flags: tuple[Flag, ...]
    given: dict[str, Value]
    notes: list[str] = field(default_factory=list)

    def options(self) -> dict[str, Any]:
        """Our options, with the defaults of there for what was not given."""
        found: dict[str, Any] = {}
        for flag in self.flags:
            value = self.value(flag.name)
            if flag.to and value is not None and (value != "" or flag.words is not None):
                found[flag.to] = flag.words[str(value)] if flag.words is not None else value
        return found

    def value(self, name: str) -> Any:
        """As given, or the default of there, or None."""
        (flag,) = [flag for flag in self.flags if flag.name == name]
        return self.given.get(name, flag.default)

    def note(self, name: str, why: str) -> None:
        """A remark on a flag that was given."""
        if name in self.given:
            self.notes.append(f"--{name}={shown_value(self.given[name])}: {why}.")


def read_line(words: Sequence[str], flags: tuple[Flag, ...], system: str, needed: str = "") -> Line:
    """Raises `UserError` for an unknown flag (and names the nearest one), a bad value, whatever is refused, and the
    needed flag when it is missing.

    Example: `--block_size 64 --enable_mla` to {"block_size": 64, "enable_mla": True}."""
    known, line, rest = {flag.name: flag for flag in flags}, Line(flags, {}), list(words)
    while rest:
        flag, text = _split(rest.pop(0), known, system)
        if text is None:
            text = _value(flag, rest)
        value = flag.read(text)
        if line.given.setdefault(flag.name, value) != value:
            raise UserError(f"--{flag.name} is given twice; give it once.")
        remark = flag.remark(value)
        if remark and remark not in line.notes:
            line.notes.append(remark)
    if needed and not line.given.get(needed):
        raise UserError(f"--{needed} is missing; give one.")
    return line


def _split(word: str, known: Mapping[str, Flag], system: str) -> tuple[Flag, str | None]:
    """A word to its flag and the value within the word, if there is one."""
    name, equals, text = word.lstrip("-").partition("=")
    if not word.startswith("-") or not name:
        raise UserError(f"{word[:60]!r} follows no flag; every option of {system} begins with --.")
    name = name.replace("-", "_")
    if name in known:
        return known[name], text if equals else None
    denied = known.get(name.removeprefix("no"))
    if denied is not None and denied.kind is bool and not equals:
        return denied, "false"
    near = get_close_matches(name, known, 1)
    mend = f"did you mean --{near[0]}?" if near else "--help lists those that are understood."
    raise UserError(f"{system}'s flag --{name[:60]} is not known here; {mend}")


def _value(flag: Flag, rest: list[str]) -> str:
    """The value that follows a flag, taken off `rest`."""
    if flag.kind is bool:
        return rest.pop(0) if rest and rest[0].lower() in TRUTH else "true"
    if not rest or rest[0].startswith("--"):
        raise UserError(f"--{flag.name} lacks its value; write --{flag.name}=VALUE.")
    taken = [rest.pop(0)]
    while flag.kind is tuple and rest and rest[0].isdigit():
        taken.append(rest.pop(0))
    return " ".join(taken)


def shown_value(value: Value) -> str:
    """On one line, and not all of a long one."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())[:200]


def say(notes: Iterable[str]) -> None:
    """One line each on stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
