"""A belief by looks one after the other, against the textbook's Gaussian given all looks at once."""

from __future__ import annotations

import pytest
import torch

from paceline.spec.belief import Belief, prior_of

DRAFTS = (0, 1, 2, 5)
LOOKS = [(0, 0.1, 0.02), (2, 0.3, 0.01), (1, 0.25, 0.03), (2, 0.2, 0.02), (3, 0.3, 0.05)]  # way, seen, variance


def toward(way: int) -> torch.Tensor:
    """What a look at a way sees of (level, errors)."""
    row = torch.zeros(len(DRAFTS), dtype=torch.float64)
    row[0] = 1.0
    row[way] = 1.0
    return row


def test_looks_one_by_one_are_as_all_at_once() -> None:
    belief = Belief(prior_of(DRAFTS))
    prior = torch.tensor(belief.cov, dtype=torch.float64)
    seen = torch.stack([toward(way) for way, _, _ in LOOKS])
    noise = torch.diag(torch.tensor([variance for _, _, variance in LOOKS], dtype=torch.float64))
    gain = prior @ seen.T @ torch.linalg.inv(seen @ prior @ seen.T + noise)
    for way, value, variance in LOOKS:
        belief.learn(way, value, variance)
    values = torch.tensor([value for _, value, _ in LOOKS], dtype=torch.float64)
    assert belief.mean == pytest.approx((gain @ values).tolist())
    assert torch.allclose(torch.tensor(belief.cov, dtype=torch.float64), prior - gain @ seen @ prior)


def test_a_look_is_worth_what_it_takes_off_the_doubt() -> None:
    """The difference's variance before is its variance after, and that of how far the look will move it."""
    belief = Belief(prior_of(DRAFTS))
    belief.learn(1, 0.1, 0.01)

    def apart() -> float:
        return belief.cov[2][2] + belief.cov[1][1] - 2 * belief.cov[1][2]

    moved, before = belief.told_apart(2, 1, 0.02), apart()
    belief.learn(2, 0.2, 0.02)
    assert apart() + moved**2 == pytest.approx(before)


def test_one_wild_look_does_not_settle_anything() -> None:
    tame, wild = Belief(prior_of(DRAFTS)), Belief(prior_of(DRAFTS))
    tame.learn(1, 1.0, 0.01)
    wild.learn(1, 100.0, 0.01)
    assert wild.expected(1) < 2 * tame.expected(1)


def test_errors_are_forgotten_and_the_level_is_not() -> None:
    belief, fresh = Belief(prior_of(DRAFTS)), Belief(prior_of(DRAFTS))
    for _ in range(20):
        belief.learn(0, 0.4, 0.01)
        belief.learn(2, 0.9, 0.01)
    level = belief.mean[0]
    belief.pass_time(10_000_000)
    assert belief.mean[0] == level and belief.error(2) == pytest.approx(0.0, abs=1e-6)
    assert belief.doubt(2) == pytest.approx(fresh.doubt(2))
