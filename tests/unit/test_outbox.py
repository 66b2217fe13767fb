"""What the engine has said reaches the web process whole, in order, and not too often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.request import Request, SamplingParams
from paceline.serve.durations import Durations
from paceline.serve.messages import Piece
from paceline.serve.outbox import AN_ANSWER, LONGEST, Outbox


def request(name: str, **params: int) -> Request:
    return Request(name, [7, 8], 2, SamplingParams(**params), seed=0)


def says(each: Request, tokens: list[int], ends: bool = False) -> None:
    each.tokens += tokens
    each.origins += [0] * len(tokens)
    each.logprobs += [{token: -0.5} for token in tokens]
    each.finish_reason = "stop" if ends else None


STEPS = st.lists(st.tuples(st.floats(0.0, 0.05), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)


@given(STEPS, st.sampled_from([0.0, 0.01, 0.04]))
def test_every_token_is_told_once_and_in_order(steps: list[tuple[float, int, int]], interval: float) -> None:
    outbox, asked, now, told = Outbox(interval), [request("r-0", logprobs=1), request("r-1")], 100.0, list[Piece]()
    outbox.open("job", asked)
    for number, (pause, *counts) in enumerate(steps):
        now, last = now + pause, number == len(steps) - 1
        for each, count in zip(asked, counts, strict=True):
            says(each, list(range(number, number + count)), ends=last)
            if count or last:
                outbox.add(each, now)
        told += outbox.take(now)
    assert outbox.drop("job") == [] and outbox.take(now + 100) == []
    for index, each in enumerate(asked):
        pieces = [piece for piece in told if piece.index == index]
        assert [token for piece in pieces for token in piece.tokens] == each.tokens[2:]
        moments = [moment for piece in pieces for moment in piece.moments]
        assert moments == sorted(moments) and moments[-1] == now
        assert [piece.finished is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    rows = [row for piece in told if piece.index == 0 for row in piece.logprobs or []]
    assert rows == asked[0].logprobs
    assert all(piece.logprobs is None for piece in told if piece.index == 1)


def test_first_tokens_and_ends_do_not_wait() -> None:
    outbox, asked = Outbox(0.03), [request("a"), request("b")]
    outbox.open("job", asked)

    def step(now: float, *who: Request, ends: bool = False) -> list[int]:
        for each in who:
            says(each, [5], ends)
            outbox.add(each, now)
        return [piece.index for piece in outbox.take(now)]

    assert step(1.0, asked[0]) == [0]  # its first token
    assert step(1.01, *asked) == [1]  # the other's first token; the first answer's second one waits
    assert step(1.02, *asked) == []
    assert step(1.031, asked[0]) == [0, 1]  # all that has waited
    assert step(1.032, asked[1], ends=True) == [1]
    assert outbox.job_of(asked[1]) is None and outbox.job_of(asked[0]) == "job"
    assert outbox.drop("job") == ["a"] and step(2.0, *asked) == []


@pytest.mark.parametrize("count", [40, 200])
def test_many_answers_are_told_of_less_often(count: int) -> None:
    outbox, asked = Outbox(0.001), [request(str(i)) for i in range(count)]
    outbox.open("job", asked)
    told = []
    for now in (1.0, 1.03, 1.0 + min(count * AN_ANSWER, LONGEST) + 1e-6):
        for each in asked:
            says(each, [5])
            outbox.add(each, now)
        told.append(len(outbox.take(now)))
    assert told == [count, 0, count]


@given(st.lists(st.floats(0, 3)))
def test_durations_are_counted_as_prometheus_does(seconds: list[float]) -> None:
    """In cumulative buckets; a value on a bound is in its bucket."""
    durations, bounds = Durations("d", "text", "m", (0.5, 1.0, 2.0)), (0.5, 1.0, 2.0, float("inf"))
    half = len(seconds) // 2
    for part in (seconds[:half], [], seconds[half:]):
        durations.observe(part)
        (family,) = durations.collect()
    found = {s.labels["le"]: s.value for s in family.samples if s.name == "d_bucket"}
    assert found == {
        name: sum(each <= bound for each in seconds)
        for name, bound in zip(("0.5", "1.0", "2.0", "+Inf"), bounds, strict=True)
    }
    (total,) = [s.value for s in family.samples if s.name == "d_sum"]
    assert abs(total - sum(seconds)) < 1e-9 * (1 + total)
