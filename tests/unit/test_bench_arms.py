"""What the names of arms stand for."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.bench.arms import arm_options, parse_arms, speculation_field
from paceline.errors import UserError

K = "num_speculative_tokens"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {"drafter": "none"}),
        ("auto", {"drafter": "mtp", K: "auto"}),
        ("0", {"drafter": "mtp", K: 0}),
        ("16", {"drafter": "mtp", K: 16}),
        ("ngram", {"drafter": "ngram"}),
        ("ngram:3", {"drafter": "ngram", K: 3}),
        ("ngram:auto", {"drafter": "ngram", K: "auto"}),
    ],
)
def test_names(name: str, options: dict[str, Any]) -> None:
    assert arm_options(name, "mtp") == options


@pytest.mark.parametrize(
    "name", ["17", "-1", "mtp:", ":", "mtp:x", "eagle", "eagle:2", "none:2", "mtp:1:2", "1.5", "²"]
)
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(UserError, match="There is no arm"):
        arm_options(name, "mtp")


def test_lists_of_them() -> None:
    assert parse_arms(" none, auto,2,none,") == ["none", "auto", "2"]
    for empty in ("", " , "):
        with pytest.raises(UserError, match="no arm to measure"):
            parse_arms(empty)


def test_what_one_request_asks_of_our_server() -> None:
    """A drafter that nobody named is the server's own."""
    assert speculation_field("none", None) == {"drafter": "none"}
    assert speculation_field("auto", None) == {K: "auto"} and speculation_field("2", "mtp") == {"drafter": "mtp", K: 2}
