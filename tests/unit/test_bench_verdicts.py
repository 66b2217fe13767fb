"""What a table says in the end: the best fixed number, and the worst source."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.bench.intervals import ratio
from paceline.bench.verdicts import best_fixed, by_source
from paceline.cli.bench_sources import sentence, source_markdown, source_tables

Row = dict[str, Any]


def row(source: str, concurrency: int, rates: dict[str, list[float]]) -> Row:
    """As `bench table` makes it, of the output tokens/s of each arm's repeats; the first arm is the baseline."""
    base = next(iter(rates.values()))
    arms = {
        name: {
            "whole": {"output_tokens_per_second": mine[0]},
            "same": True,
            "speedup": {"output": ratio(mine, base)},
            "by_repeat": [{"whole": {"output_tokens_per_second": rate}} for rate in mine],
        }
        for name, mine in rates.items()
    }
    repeats = len(base)
    return {
        "source": source, "concurrency": concurrency, "repeats": repeats, "arms": arms, "best_fixed": best_fixed(rates)
    }  # fmt: skip


ROWS = [
    row("easy", 1, {"none": [100, 100], "auto": [180, 180], "1": [150, 150], "2": [200, 200]}),
    row("hard", 1, {"none": [100, 50], "auto": [105, 52.5], "1": [90, 45], "2": [60, 30]}),
    row("easy", 8, {"none": [400, 400], "auto": [400, 400], "1": [300, 300], "2": [200, 200]}),
    row("hard", 8, {"none": [400, 400], "auto": [380, 380], "1": [200, 200], "2": [100, 100]}),
]


def test_auto_is_held_against_the_best_fixed_number() -> None:
    arms: dict[str, list[float]] = {"none": [1, 1], "auto": [3, 6], "1": [2, 2], "2": [3, 3], "ngram:3": [9, 9]}
    found = best_fixed(arms)
    assert found is not None and found["arm"] == "2" and found["output"]["median"] == 1.5
    plain = best_fixed(arms | {"none": [4, 4]})
    assert plain is not None and plain["arm"] == "none"
    for fewer in ({"none", "auto"}, {"none", "1", "2"}):
        assert best_fixed({name: arms[name] for name in fewer}) is None
    assert best_fixed({name: [] for name in arms}) is None


def test_the_worst_source_is_named_and_all_count_the_same() -> None:
    one, eight = by_source(ROWS)
    assert (one["concurrency"], one["sources"], one["arm"], one["same"]) == (1, 2, "auto", True)
    assert one["together"]["median"] == pytest.approx((1.8 * 1.05) ** 0.5)
    assert (one["worst"]["source"], one["worst"]["median"]) == ("hard", pytest.approx(1.05))
    # 2 is best on the easy source, none on the hard one; over both 1 is, by sqrt(1.5 * 0.9) against sqrt(2 * 0.6).
    assert one["together_to_best_fixed"]["arm"] == "1"
    assert one["together_to_best_fixed"]["output"]["median"] == pytest.approx((1.8 * 1.05 / 1.5 / 0.9) ** 0.5)
    assert (one["worst_to_best_fixed"]["source"], one["worst_to_best_fixed"]["median"]) == ("easy", pytest.approx(0.9))
    assert eight["worst"]["median"] == pytest.approx(0.95) == eight["worst_to_best_fixed"]["median"]


def test_only_what_every_source_has_counts() -> None:
    """An interrupted run: the last source has one repeat, or none."""
    half = [ROWS[0], row("hard", 1, {"none": [100], "auto": [105], "1": [90], "2": [60]})]
    assert by_source(half)[0]["together"] == {"median": pytest.approx((1.8 * 1.05) ** 0.5), "low": None, "high": None}
    assert by_source([ROWS[0], ROWS[1] | {"repeats": 0}])[0]["sources"] == 1
    assert by_source([{name: ROWS[0][name] for name in ROWS[0] if name != "source"}]) == by_source([]) == []
    assert by_source([row("alone", 1, {"none": [1.0]})]) == []


def test_the_worst_source_stands_first() -> None:
    lines = source_markdown(ROWS)
    assert lines[0] == ("| concurrency | source | none tok/s | auto | 1 | 2 | auto to the best fixed | same text |")
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| 1", "hard"], ["| 1", "easy"], ["| 8", "hard"], ["| 8", "easy"]
    ]  # fmt: skip
    assert lines[2] == "| 1 | hard | 100 | 1.05x [1.05, 1.05] | 0.90x | 0.60x | 1.05x [1.05, 1.05] (none) | yes |"
    assert [table.row_count for table in source_tables(ROWS)] == [2, 2]
    assert sentence(by_source(ROWS)[1]) == (
        "8 in flight: auto 0.97x [0.97, 0.97] of plain decoding over 2 sources, 0.95x [0.95, 0.95] on the worst "
        "(hard); of the best fixed number 0.97x [0.97, 0.97] (none for all), of that of each source 0.95x [0.95, 0.95] "
        "on the worst (hard); all texts the same"
    )
    two = [row("easy", 1, {"none": [1.0], "3": [2.0]}), row("hard", 1, {"none": [2.0], "3": [2.0]})]
    assert sentence(by_source(two)[0]) == (
        "1 in flight: 3 1.41x of plain decoding over 2 sources, 1.00x on the worst (hard); all texts the same"
    )
