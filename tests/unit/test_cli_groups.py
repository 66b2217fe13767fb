"""Options in groups: typer sees each of them, the command gets them together."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from paceline.cli import options as opt
from paceline.cli.groups import grouped
from paceline.errors import UserError


@dataclass(frozen=True)
class Place:
    host: Annotated[str, typer.Option(help="Where.", metavar="NAME")] = "localhost"
    port: Annotated[int, typer.Option(min=1)] = 80


@grouped
def visit(
    *, name: Annotated[str, typer.Argument()], place: Place, twice: Annotated[bool, typer.Option("--twice")] = False
) -> None:
    """Go there."""
    print(name, place, twice)


def test_typer_sees_every_option_in_its_place() -> None:
    assert list(inspect.signature(visit).parameters) == ["name", "host", "port", "twice"]
    app = typer.Typer()
    app.command()(visit)
    said = CliRunner().invoke(app, ["me", "--port", "8000", "--twice"])
    assert said.exit_code == 0 and said.output == "me Place(host='localhost', port=8000) True\n"
    assert CliRunner().invoke(app, ["me", "--port", "0"]).exit_code == 2
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(word in shown for word in ("Go there.", "--host", "NAME", "Where.", "localhost", "--port", "--twice"))


def test_what_was_given_is_what_the_engine_hears() -> None:
    drafting, sizes = opt.Drafting(num_speculative_tokens="3"), opt.Sizes(block_size=8, no_prefix_cache=True)
    assert opt.engine_options(drafting, opt.Modules(), sizes) == {
        "num_speculative_tokens": 3,
        "block_size": 8,
        "enable_prefix_caching": False,
    }
    assert opt.engine_options(opt.Drafting(num_speculative_tokens="auto"), opt.Sizes()) == {
        "num_speculative_tokens": "auto"
    }


@pytest.mark.parametrize(
    "groups",
    [
        (opt.Drafting("none", "2"),),
        (opt.Drafting("ngram"), opt.Modules(mtp_modules=1)),
        (opt.Drafting(), opt.Lookup(ngram_max=3)),
        (opt.Drafting("mtp"), opt.Lookup(speculative_config='{"method": "mtp"}')),
    ],
)
def test_an_option_that_nobody_would_look_at_is_refused(groups: tuple[object, ...]) -> None:
    with pytest.raises(UserError):
        opt.refuse_idle_options(*groups)
    opt.refuse_idle_options(opt.Drafting("mtp,ngram", "2"), opt.Modules(mtp_modules=1), opt.Lookup(ngram_max=3))
