"""The referee by simulation: a machine that is not as its table says, and a clock that cannot be trusted either."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import exp

import pytest

from paceline.spec.allocate import Sets
from paceline.spec.referee import Referee

MOST, SEEDS = 4, 4
Speed = Callable[[float], float]  # drafts a request -> tokens a second, 1 for none


class Clock:
    """Lognormal noise of 10 %, and one step in a hundred takes three times as long."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self) -> float:
        return exp(0.1 * self._random.gauss(0, 1)) * (3 if self._random.random() < 0.01 else 1)


def forecast(requests: int, promise: Speed) -> Sets:
    """Every draft is accepted with the same chance; seconds such that the rates are those of `promise`."""
    rows = [round(k * requests / 4) for k in range(4 * MOST + 1)]
    tokens = [requests + 0.7 * r for r in rows]
    seconds = [t / (requests * promise(r / requests)) for t, r in zip(tokens, rows, strict=True)]
    return Sets([], rows, tokens, seconds)


def loss(steps: int, truth: Speed, promise: Speed, requests: int = 8, seed: int = 0) -> float:
    """The time that was lost against the best way, as a share."""
    referee, sets, clock = Referee(MOST), forecast(requests, promise), Clock(seed)
    real, best = forecast(requests, truth), max(map(truth, range(MOST + 1)))
    tokens = seconds = 0.0
    left = chosen = 0
    for _ in range(steps):
        if not left:
            chosen, left = referee.choose(requests, sets)
        left -= 1
        if referee.looks() and referee.learn(
            requests, sets.seconds[chosen], real.seconds[chosen] * clock(), clean=True
        ):
            left = 0
        tokens, seconds = tokens + real.tokens[chosen], seconds + real.seconds[chosen]
    return 1 - tokens / seconds / requests / best


def mean_loss(steps: int, truth: Speed, promise: Speed) -> float:
    return (
        sum(loss(steps, truth, promise, requests, seed) for requests in (1, 8, 80) for seed in range(SEEDS)) / 3 / SEEDS
    )


def flat(rate: float) -> Speed:
    """The same, however much is drafted."""
    return lambda share: 1 + (rate - 1) * min(share, 1)


def line(at_one: float) -> Speed:
    """`at_one` with a draft for each request, and on in that direction, but less and less."""
    return lambda share: 1 + (at_one - 1) * share**0.5


def hill(top: float) -> Speed:
    """`top` at two drafts for each request."""
    return lambda share: max(0.2, 1 + (top - 1) * (1 - (share / 2 - 1) ** 2))


@pytest.mark.parametrize("rate", [0.7, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("promise", [0.9, 1.0, 1.1])
def test_what_does_not_pay_costs_next_to_nothing(rate: float, promise: float) -> None:
    assert mean_loss(300, flat(rate), line(promise)) < (0.03 if promise <= 1 else 0.05)
    assert mean_loss(2000, flat(rate), line(promise)) < 0.015


@pytest.mark.parametrize("promise", [0.95, 1.0, 1.15, 1.4])
@pytest.mark.parametrize("top", [1.15, 1.3])
def test_what_pays_is_found(top: float, promise: float) -> None:
    """At least 97 % of what is to be had."""
    assert mean_loss(1000, hill(top), hill(promise)) < 0.03


def test_the_right_number_is_found_where_the_table_names_another() -> None:
    assert mean_loss(1000, hill(1.3), lambda share: 1 + 0.1 * share) < 0.03
    assert mean_loss(1000, hill(1.3), lambda share: 1.2 - 0.05 * share if share else 1.0) < 0.03


def test_a_machine_that_turns_slow_confuses_nobody() -> None:
    """What is slower by the same factor is not judged anew."""
    referee, sets, clock = Referee(MOST), forecast(8, hill(1.2)), Clock(1)
    drafted, left, chosen = 0, 0, 0
    for number in range(3000):
        if not left:
            chosen, left = referee.choose(8, sets)
        left -= 1
        slow = 1.5 if number // 500 % 2 else 1.0
        if referee.looks():
            referee.learn(8, sets.seconds[chosen], sets.seconds[chosen] * slow * clock(), clean=True)
        drafted += chosen > 0
    assert drafted > 2900


def test_neighbours_share_what_was_learned() -> None:
    """A batch of nine knows what one of eight found out, and need not try it again."""
    referee, truth = Referee(MOST), line(0.7)
    for requests in (8, 9):
        sets, real = forecast(requests, line(1.1)), forecast(requests, truth)
        drafted = 0
        for _ in range(60):
            chosen, steps = referee.choose(requests, sets)
            for _ in range(steps):
                referee.looks()
                referee.learn(requests, sets.seconds[chosen], real.seconds[chosen], clean=True)
            drafted += steps * (chosen > 0)
    assert drafted < 20


def test_steps_with_prompts_teach_nothing() -> None:
    referee, sets = Referee(MOST), forecast(4, hill(1.3))
    for _ in range(50):
        chosen, steps = referee.choose(4, sets)
        for _ in range(steps):
            referee.learn(4, sets.seconds[chosen], 9.0, clean=False)
    assert referee.choose(4, sets)[0] > 0
