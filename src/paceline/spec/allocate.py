"""Which drafts to make and to verify: the best set for a whole batch, searched over all budgets.

Draft j of a request brings a token if the first j are all accepted: with probability S_j, which falls with j. So the
best set of B drafts is simply the B largest S_j of the whole batch, and it holds every chain's drafts from the first
on. What a set costs depends on its size and on how many requests go how deep, in steps (a product of 17 rows may cost
what 32 do): hence every budget is tried, not only those up to the first that is worse than the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_STRIDES = 8  # members of one group are taken one at a time up to so many, larger groups in so many parts


class Group(NamedTuple):
    """`members` requests with the same prospects: gains[j] tokens are to be expected of a request's next draft but j,
    not increasing in j."""

    gains: Sequence[float]
    members: int


class Allocation(NamedTuple):
    """`taken[g][j]`: how many members of group g get their next draft but j. tokens, seconds: of the whole step, as
    expected; `idle`: the score with no further draft, `score`: with these."""

    taken: list[list[int]]
    tokens: float
    seconds: float
    idle: float
    score: float


def allocate(
    groups: Sequence[Group],
    passes: Sequence[float],
    drafts: Sequence[Sequence[float]],
    tokens: float,
    rate: float | None = None,
) -> Allocation:
    """The drafts that bring the most.

    passes[b]: seconds of the pass with b more rows; drafts[j][n]: seconds of making the next draft but j for n requests
    (0 for none). tokens: what comes without further drafts.
    rate None: maximises tokens / seconds. Otherwise tokens - rate * seconds: what a draft brings must be worth its time
    at so many tokens a second.

    Example: one request, S = .8 and .64, a pass of 1 s whatever its rows, .1 s a draft: 1.8 / 1.1 beats 1 / 1, and
    2.44 / 1.2 beats that: two drafts."""
    taken = [[0] * len(group.gains) for group in groups]
    counts = [0] * len(drafts)
    drafting, rows = 0.0, 0
    seconds = passes[0]
    score = idle = tokens / seconds if rate is None else tokens - rate * seconds
    best, chosen = (tokens, seconds), 0
    order = _increments(groups)
    for number, (loss, j, _, size) in enumerate(order, 1):
        n, costs = counts[j], drafts[j]
        drafting += costs[n + size] - costs[n]
        counts[j] = n + size
        rows += size
        tokens -= loss * size
        seconds = passes[rows] + drafting
        value = tokens / seconds if rate is None else tokens - rate * seconds
        if value > score:
            score, best, chosen = value, (tokens, seconds), number
    for _, j, g, size in order[:chosen]:
        taken[g][j] += size
    return Allocation(taken, *best, idle, score)


def _increments(groups: Sequence[Group]) -> list[tuple[float, int, int, int]]:
    """(-gain, depth, group, members), the largest gain first; of equal ones the shallower, then the earlier group."""
    found = []
    for g, (gains, members) in enumerate(groups):
        stride = -(-members // _STRIDES)
        sizes = [min(stride, members - start) for start in range(0, members, stride)]
        found += [(-gain, j, g, size) for j, gain in enumerate(gains) for size in sizes]
    found.sort()
    return found


def weighted(chain: Sequence[float], weight: float) -> list[float]:
    """Gains of a request's drafts. weight 0: tokens. weight 1: of the logarithm of its tokens a step, so that a token
    counts the more, the fewer its request gets: slow requests are not left behind for the sake of fast ones.

    d/dx log(1 + x) = 1 / (1 + x), x the tokens of the drafts before; the weight is the exponent."""
    if not weight:
        return list(chain)
    gains, before = [], 1.0
    for survival in chain:
        gains.append(survival / before**weight)
        before += survival
    return gains
