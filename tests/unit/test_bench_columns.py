"""The benchmark's columns against their definitions: percentiles, the steady window, the check, ratios."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.bench.arrivals import poisson
from paceline.bench.columns import goodput, spread, steady_state, steady_window, tpot, whole_run
from paceline.bench.intervals import medians, over_rows, ratio, t_quantile
from paceline.bench.runs import Answer


def answer(sent: float, times: list[float], counts: list[int] | None = None, prompt: int = 5) -> Answer:
    return Answer(sent, prompt, times, counts or [1] * len(times))


def closed_loop(durations: list[float], concurrency: int, first: float = 0.25) -> list[Answer]:
    """As one ends the next enters; the first token comes after that share of the time, the others evenly."""
    free, answers = [0.0] * concurrency, []
    for duration in durations:
        sent = heapq.heappop(free)
        begin = sent + first * duration
        answers.append(answer(sent, [begin + (duration - begin + sent) * i / 8 for i in range(9)]))
        heapq.heappush(free, answers[-1].times[-1])
    return answers


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_percentiles_are_between_neighbours_in_order(values: list[float]) -> None:
    found, in_order = spread(values), sorted(values)
    for percent in (50, 90, 99):
        place = percent / 100 * (len(values) - 1)
        low, high = in_order[math.floor(place)], in_order[math.ceil(place)]
        assert found[f"p{percent}"] == pytest.approx(low + (high - low) * (place % 1), abs=1e-6, rel=1e-9)
    assert found["mean"] == pytest.approx(math.fsum(values) / len(values), abs=1e-6, rel=1e-9)


def test_nothing_has_no_percentiles() -> None:
    assert set(spread([]).values()) == {None}


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 20), min_size=1, max_size=30), st.integers(1, 8))
def test_the_steady_window_is_when_all_places_are_taken(durations: list[float], concurrency: int) -> None:
    answers = closed_loop(durations, concurrency)
    random.Random(0).shuffle(answers)
    window = steady_window(answers, concurrency)
    in_order = sorted(answers, key=lambda one: one.sent)
    if len(answers) < concurrency:
        assert window is None
        return
    if window is None:  # one is over before the last of the first ones has begun
        assert min(a.times[-1] for a in answers) <= max(a.times[0] for a in in_order[:concurrency])
        return
    begin, end = window
    for moment in (begin, (begin + end) / 2, end):
        there = sum(a.sent <= moment <= a.times[-1] for a in answers)
        assert there >= concurrency
    assert sum(a.sent <= end + 1e-9 < a.times[-1] - 1e-9 for a in answers) < concurrency
    assert all(a.times[0] <= begin for a in in_order[:concurrency])


def test_columns_of_a_run_that_can_be_done_by_hand() -> None:
    """Two requests of 10 prompt tokens: one gets 1 + 2 + 3 tokens at 1, 2, 4 s, the other 2 at 3 s and 2 at 5 s."""
    answers = [answer(0.0, [1.0, 2.0, 4.0], [1, 2, 3], 10), answer(1.0, [3.0, 5.0], [2, 2], 10)]
    columns = whole_run(answers, 2)
    assert (columns["seconds"], columns["output_tokens"], columns["prompt_tokens"]) == (5.0, 10, 20)
    assert (columns["output_tokens_per_second"], columns["total_tokens_per_second"]) == (2.0, 6.0)
    assert columns["ttft_ms"]["mean"] == 1500 and columns["itl_ms"]["mean"] == pytest.approx(5000 / 3)
    # 3 s for 5 tokens, 2 s for 2
    assert columns["tpot_ms"]["mean"] == pytest.approx(1000 * (3 / 5 + 2 / 2) / 2)
    assert columns["check"] == pytest.approx(2.0 / (2 / 0.8))


def test_the_check_is_one_when_all_places_always_write() -> None:
    """Four places, a token a second each, from the start to the end."""
    answers = [answer(0.0, [float(second) for second in range(1, 101)]) for _ in range(4)]
    assert whole_run(answers, 4)["check"] == pytest.approx(1.0)
    late = [answer(0.0, [float(second) for second in range(101, 201)]) for _ in range(4)]
    assert whole_run(late, 4)["check"] == pytest.approx(0.5)


def test_the_steady_state_knows_no_tail() -> None:
    """One of five requests stays alone at the end: the whole run is slower than the steady state."""
    answers = closed_loop([10.0] * 5, 2, first=0.1)
    steady, whole = steady_state(answers, 2), whole_run(answers, 2)
    assert steady is not None and steady["seconds"] == pytest.approx(20.0 - 1.0)
    assert steady["output_tokens_per_second"] > whole["output_tokens_per_second"]
    assert steady["tpot_ms"]["mean"] == pytest.approx(whole["tpot_ms"]["mean"])


def test_a_request_of_one_step_has_no_tpot() -> None:
    assert tpot([1.0], [3]) is None
    columns = whole_run([answer(0.0, [1.0], [3])], 1)
    assert columns["tpot_ms"]["mean"] is None and columns["check"] is None


def test_goodput_counts_who_kept_both_limits() -> None:
    answers = [answer(0.0, [0.1, 0.2]), answer(0.0, [0.3, 0.4]), answer(0.0, [0.1, 0.9]), answer(0.0, [0.1])]
    assert goodput(answers, 200, 150, seconds=2.0) == {"goodput": 1.0, "share_within_limits": 0.5}


def test_ratios_and_their_intervals() -> None:
    assert ratio([2.0, 4.0, 3.0], [1.0, 2.0, 1.5]) == {
        "median": 2.0,
        "low": pytest.approx(2.0),
        "high": pytest.approx(2),
    }
    assert ratio([3.0], [2.0]) == {"median": 1.5, "low": None, "high": None}
    assert ratio([1.0, None], [1.0, 1.0]) is None
    found = ratio([1.0, math.e**2], [1.0, 1.0])  # logarithms 0 and 2: mean 1, s sqrt(2), t(1) 12.706
    assert found is not None and math.log(found["low"]) == pytest.approx(1 - 12.706)
    assert t_quantile(1) == 12.706 and t_quantile(40) == pytest.approx(2.021, abs=0.01)


@pytest.mark.parametrize("repeats", [2, 4, 10])
def test_intervals_hold_what_they_promise(repeats: int) -> None:
    """The true ratio, in about 95 of 100 experiments, however few the repeats and however much both sides of one share:
    a moment in which the machine is twice as slow is no error."""
    rng, held, widths = random.Random(repeats), 0, []
    for _ in range(1000):
        base = [rng.lognormvariate(0, 0.7) for _ in range(repeats)]
        found = ratio([1.3 * b * rng.lognormvariate(0, 0.02) for b in base], base)
        assert found is not None
        held += found["low"] <= 1.3 <= found["high"]
        widths.append(math.log(found["high"] / found["low"]) / 2)
    assert 0.93 <= held / 1000 <= 0.97
    # t * 0.02 / sqrt(repeats): 18 % of two repeats, 3 % of four, 1.4 % of ten.
    assert median(widths) == pytest.approx(t_quantile(repeats - 1) * 0.02 / math.sqrt(repeats), rel=0.4)


@pytest.mark.parametrize(("rows", "repeats"), [(19, 2), (19, 5), (3, 3)])
def test_rows_that_were_measured_apart_make_up_for_few_repeats(rows: int, repeats: int) -> None:
    """The geometric mean over rows of different ratios, one of them four times as noisy as the others."""
    rng, held, widths = random.Random(rows + repeats), 0, []
    truth = [1.0 + 0.05 * row for row in range(rows)]
    for _ in range(1000):
        noise = [0.08] + [0.02] * (rows - 1)
        found = over_rows(
            [[t * rng.lognormvariate(0, s) for _ in range(repeats)] for t, s in zip(truth, noise, strict=True)]
        )
        middle = math.exp(math.fsum(map(math.log, truth)) / rows)
        held += found["low"] <= middle <= found["high"]
        widths.append(math.log(found["high"] / found["low"]) / 2)
    assert 0.93 <= held / 1000 <= 0.985
    if rows == 19:
        assert median(widths) < (0.025 if repeats == 2 else 0.012)
    assert over_rows([[2.0, 2.0], [8.0, 8.0]]) == pytest.approx({"median": 4.0, "low": 4.0, "high": 4.0})
    assert over_rows([[2.0], [8.0, 8.0]])["low"] is None


def test_medians_go_into_dictionaries() -> None:
    runs = [
        {"a": 1.0, "b": {"c": 3.0, "d": None}},
        {"a": 5.0, "b": {"c": 1.0, "d": 2.0}},
        {"a": 2.0, "b": {"c": 2.0, "d": 1}},
    ]
    assert medians(runs) == {"a": 2.0, "b": {"c": 2.0, "d": None}}
    assert medians([runs[0], None]) is None and medians([]) is None


def test_poisson_arrivals() -> None:
    slow, fast = poisson(2.0, 4000, seed=3), poisson(8.0, 4000, seed=3)
    assert list(slow) == sorted(slow) and slow == pytest.approx([4 * when for when in fast])
    assert 4000 / slow[-1] == pytest.approx(2.0, rel=0.1) and poisson(2.0, 5, seed=4) != slow[:5]
    pauses = [b - a for a, b in itertools.pairwise(slow)]
    mean = sum(pauses) / len(pauses)
    # Exponential: as far from the mean as the mean is from 0.
    assert math.sqrt(sum((p - mean) ** 2 for p in pauses) / len(pauses)) == pytest.approx(mean, rel=0.1)
