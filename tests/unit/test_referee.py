"""The referee by simulation: a machine that is not as its table says, and a clock that cannot be trusted either."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from math import exp

import pytest

from paceline.spec.referee import Referee

MOST, SEEDS = 4, 5
AT_ONCE = [0.0] * (MOST + 1)  # nothing has to be read before it can be drafted
Speed = Callable[[float], float]  # drafts a request -> tokens a second, 1 for none


class Clock:
    """Lognormal noise of 10 %, and one step in a hundred takes three times as long."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self) -> float:
        return exp(0.1 * self._random.gauss(0, 1)) * (3 if self._random.random() < 0.01 else 1)


def forecast(requests: int, promise: Speed) -> tuple[list[float], list[float]]:
    """Tokens and seconds of each way. Every draft is accepted with the same chance; seconds such that the rates are
    those of `promise`."""
    tokens = [requests * (1 + 0.7 * k) for k in range(MOST + 1)]
    return tokens, [t / (requests * promise(k)) for k, t in enumerate(tokens)]


def loss(
    steps: int,
    truth: Speed,
    promise: Speed,
    requests: int = 8,
    seed: int = 0,
    clock: Callable[[], float] | None = None,
    referee: Referee | None = None,
) -> float:
    """The time that was lost against the best way, as a share; what the clock adds is nobody's fault."""
    referee, (expected, seconds) = referee or Referee(MOST), forecast(requests, promise)
    clock = clock or Clock(seed)
    real, best = forecast(requests, truth)[1], max(map(truth, range(MOST + 1)))
    tokens = spent = 0.0
    left = way = 0
    for _ in range(steps):
        if not left:
            way, left = referee.choose(requests, expected, seconds, AT_ONCE)
        left -= 1
        if referee.looks() and referee.learn(seconds[way], [real[way] * clock()], clean=True):
            left = 0
        tokens, spent = tokens + expected[way], spent + real[way]
    return 1 - tokens / spent / requests / best


def mean_loss(steps: int, truth: Speed, promise: Speed) -> float:
    seeds = enumerate((1, 8, 80) * SEEDS)
    return sum(loss(steps, truth, promise, requests, seed) for seed, requests in seeds) / 3 / SEEDS


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
    referee, clock, (tokens, seconds) = Referee(MOST), Clock(1), forecast(8, hill(1.2))
    drafted, left, way = 0, 0, 0
    for number in range(3000):
        if not left:
            way, left = referee.choose(8, tokens, seconds, AT_ONCE)
        left -= 1
        slow = 1.5 if number // 500 % 2 else 1.0
        if referee.looks() and referee.learn(seconds[way], [seconds[way] * slow * clock()], clean=True):
            left = 0
        drafted += way > 0
    assert drafted > 2900


def test_neighbours_share_what_was_learned() -> None:
    """A batch of nine knows what one of eight found out, and need not try it again."""
    referee, truth = Referee(MOST), line(0.7)
    for requests in (8, 9):
        (tokens, seconds), real = forecast(requests, line(1.1)), forecast(requests, truth)[1]
        drafted = 0
        for _ in range(60):
            way, steps = referee.choose(requests, tokens, seconds, AT_ONCE)
            for _ in range(steps):
                drafted += way > 0
                if referee.looks() and referee.learn(seconds[way], [real[way]], clean=True):
                    break
    assert drafted < 20


def test_steps_with_prompts_teach_nothing() -> None:
    referee, (tokens, seconds) = Referee(MOST), forecast(4, hill(1.3))
    for _ in range(50):
        _, steps = referee.choose(4, tokens, seconds, AT_ONCE)
        for _ in range(steps):
            referee.looks()
            referee.learn(seconds[0], [9.0], clean=False)
    assert referee.choose(4, tokens, seconds, AT_ONCE)[0] > 0


class Troubled:
    """Noise of 7 %, bursts of a hundred steps that take half as long again, and a speed that drifts up and down."""

    def __init__(self, seed: int) -> None:
        self._random, self._burst, self._drift = random.Random(seed), 0, 0.0

    def __call__(self) -> float:
        self._burst = max(0, self._burst - 1) or (100 if self._random.random() < 1 / 1000 else 0)
        self._drift = 0.999 * self._drift + 0.003 * self._random.gauss(0, 1)
        return exp(self._drift + 0.07 * self._random.gauss(0, 1)) * (1.5 if self._burst else 1.0)


@pytest.mark.parametrize("truth", [flat(0.8), flat(0.95), hill(1.15), hill(1.3)])
@pytest.mark.parametrize("promise", [hill(1.0), hill(1.2)])
def test_other_processes_and_drift_confuse_next_to_nothing(truth: Speed, promise: Speed) -> None:
    losses = [loss(2000, truth, promise, 8, seed, Troubled(seed)) for seed in range(10)]
    assert sum(losses) / len(losses) < 0.02


def test_what_one_knew_the_next_one_need_not_try() -> None:
    """A table that promises drafts which are 0.9 times as fast, and one that denies drafts 1.2 times as fast."""
    lost = {"first": 0.0, "next": 0.0}
    for truth, promise in ((line(0.9), line(1.1)), (hill(1.2), line(0.95))):
        for seed in range(SEEDS):
            first = Referee(MOST)
            lost["first"] += loss(300, truth, promise, seed=seed, referee=first)
            loss(1500, truth, promise, seed=seed + 50, referee=first)
            known = json.loads(json.dumps(first.known()))
            lost["next"] += loss(300, truth, promise, seed=seed + 100, referee=Referee(MOST, known))
    assert lost["next"] < 0.5 * lost["first"]


@pytest.mark.parametrize(
    "errors",
    [
        None,
        7,
        [],
        {},
        {"mean": [0.1], "cov": [[0.01]]},
        {"mean": ["a"] * 4, "cov": [[0.01] * 4] * 4},
        {"mean": [0.0] * 4, "cov": [[float("nan")] * 4] * 4},
        {"mean": [0.0] * 4, "cov": [[-0.01] * 4] * 4},
        {"mean": [0.0] * 4, "cov": [[100.0] * 4] * 4},
        {"mean": [0.0] * 4, "cov": [[0.01] * 16]},
        {"mean": [10**400] * 4, "cov": [[0.01] * 4] * 4},
    ],
)
def test_what_is_no_knowledge_is_left_out(errors: object) -> None:
    assert not Referee(MOST, {"8": errors}).known()
    good = {"mean": [0.0] * 4, "cov": [[0.01] * 4] * 4}
    assert Referee(MOST, {"8": errors, "x": good, "9": good}).known().keys() == {"9"}


def test_what_is_known_of_one_kind_tells_nothing_of_another() -> None:
    """Free texts, whose drafts are 1.3 times as fast, and texts in a grammar, whose drafts are 0.7 times as fast."""
    referee, real = Referee(MOST), {0: flat(1.3), 1: flat(0.7)}
    expected, seconds = forecast(8, flat(1.0))
    chosen: dict[int, list[bool]] = {0: [], 1: []}
    for turn in range(40):
        kind = turn % 2
        for _ in range(6):
            way, left = referee.choose(8, expected, seconds, AT_ONCE, kind)
            took = forecast(8, real[kind])[1][way]
            chosen[kind] += [way > 0] * left
            for _ in range(left):
                if referee.looks():
                    referee.learn(seconds[way], [took], clean=True)
    for kind, drafts in ((0, True), (1, False)):
        late = chosen[kind][len(chosen[kind]) // 2 :]
        assert late.count(drafts) > 0.9 * len(late)
