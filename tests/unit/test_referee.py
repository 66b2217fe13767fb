"""The referee: what is slower by the clock is not done, and what becomes faster is found out."""

from __future__ import annotations

import pytest

from paceline.spec.referee import Referee


def run(referee: Referee, steps: int, plain: float, drafting: float, requests: int = 4) -> tuple[int, float]:
    """Steps with drafts, and seconds for a token against those of the better way. plain, drafting: tokens a second."""
    drafted = 0
    seconds = tokens = 0.0
    for _ in range(steps):
        allowed = referee.allows(requests)
        count, rate = (2 * requests, drafting) if allowed else (requests, plain)
        referee.learn(requests, allowed, count, count / rate)
        drafted += allowed
        tokens, seconds = tokens + count, seconds + count / rate
    return drafted, seconds / tokens * max(plain, drafting)


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_what_is_slower_rests(rate: float) -> None:
    drafted, loss = run(Referee(), 4000, plain=1000, drafting=1000 * rate)
    assert 0 < drafted < 300 and loss < 1.1


@pytest.mark.parametrize("rate", [1.05, 1.5, 3])
def test_what_is_faster_goes_on(rate: float) -> None:
    drafted, loss = run(Referee(), 4000, plain=1000, drafting=1000 * rate)
    assert drafted > 3800 and loss < 1.02


def test_never_off_for_good_and_sizes_apart() -> None:
    referee = Referee()
    run(referee, 4000, plain=1000, drafting=900)
    assert run(referee, 20000, plain=1000, drafting=1300)[0] > 10000
    assert run(referee, 4000, plain=1000, drafting=900)[0] < 600
    assert referee.allows(5), "another size is another match"
