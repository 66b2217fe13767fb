"""Options, and those that go together as one argument of a command: a dataclass whose fields are the options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import typer


def option(panel: str, help: str, *flags: str, **more: Any) -> Any:
    """An option in a panel of --help. more: as in `typer.Option`."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, **more)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """What typer is given for a command that takes groups: in the place of each group stand its fields.

    Example: with `class Place: host: Host = "localhost"; port: Port = 80` and `def open(name: Name, place: Place)`
    typer sees `open(*, name, host="localhost", port=80)`; it calls that, which calls `open(name=..., place=...)`."""
    groups = {name: kind for name, kind in get_type_hints(command).items() if is_dataclass(kind)}

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        made = {name: _made(kind, values) for name, kind in groups.items()}
        command(**values, **made)

    shown = list(_parameters(command))
    flat.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return flat


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """A group of its values, which are taken out."""
    return kind(**{field.name: values.pop(field.name) for field in fields(kind)})


def _parameters(command: Callable[..., None]) -> Iterator[inspect.Parameter]:
    """By name only, since options with a default may stand before some without."""
    kinds = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(kinds[name]):
            within = get_type_hints(kinds[name], include_extras=True)
            for field in fields(kinds[name]):
                yield _by_name(field.name, within[field.name], field.default)
        else:
            yield _by_name(name, kinds[name], parameter.default)


def _by_name(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
