"""Which drafts to make and to verify: the best set of every size for a whole batch.

Draft j of a request brings a token if the first j are all accepted: with probability S_j, which falls with j. So the
best set of B drafts is simply the B largest S_j of the whole batch, and it holds every chain's drafts from the first
on. What a set costs depends on its size and on how many requests go how deep, in steps (a product of 17 rows may cost
what 32 do): hence every size is priced, not only those up to the first that is worse than the one before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

_BETTER = 1.01  # what a ragged batch must bring by the forecast, for it is more work than is forecast
_STRIDES = 8  # members of one group are taken one at a time up to so many, larger groups in so many parts


class Group(NamedTuple):
    """`members` requests with the same prospects: gains[j] tokens are to be expected of a request's draft j + 1, not
    increasing in j."""

    gains: Sequence[float]
    members: int


class Sets(NamedTuple):
    """Set i holds the first i entries of `order`: (-gain, depth, group, members). Of each, rows: its drafts; tokens,
    seconds: of the whole step, as expected. Set 0 is empty."""

    order: list[tuple[float, int, int, int]]
    rows: list[int]
    tokens: list[float]
    seconds: list[float]

    def taken(self, number: int, groups: Sequence[Group]) -> list[list[int]]:
        """taken[g][j]: how many members of group g get their draft j + 1 in that set."""
        found = [[0] * len(group.gains) for group in groups]
        for _, j, g, size in self.order[:number]:
            found[g][j] += size
        return found


def best_sets(
    groups: Sequence[Group], passes: Sequence[float], drafts: Sequence[Sequence[float]], tokens: float
) -> Sets:
    """The best set of every size.

    passes[b]: seconds of the pass with b more rows; drafts[j][n]: seconds of making draft j + 1 for n requests (0 for
    none). tokens: what comes without drafts.

    Example: one request, S = .8 and .64, a pass of 1 s whatever its rows, .1 s a draft: tokens 1, 1.8 and 2.44 in 1,
    1.1 and 1.2 s."""
    order = _increments(groups)
    counts = [0] * len(drafts)
    drafting, rows = 0.0, 0
    found = Sets(order, [0], [tokens], [passes[0]])
    for loss, j, _, size in order:
        n, costs = counts[j], drafts[j]
        drafting += costs[n + size] - costs[n]
        counts[j] = n + size
        rows += size
        tokens -= loss * size
        found.rows.append(rows)
        found.tokens.append(tokens)
        found.seconds.append(passes[rows] + drafting)
    return found


class Way(NamedTuple):
    """Of a whole step, as expected: tokens, seconds. taken[g][j]: how many members of group g get their draft j + 1."""

    tokens: float
    seconds: float
    taken: list[list[int]]


def best_ways(
    groups: Sequence[Group],
    passes: Sequence[float],
    drafts: Sequence[Sequence[float]],
    tokens: float,
    places: Sequence[int],
) -> list[Way]:
    """For each number of drafts a request: as many for everyone, or the best set of about that size, if it is better.

    A ragged batch needs a pass of the drafter for its deepest chain, so that it is often no better."""
    number = sum(group.members for group in groups)
    sets = best_sets(groups, passes, drafts, tokens) if len(groups) > 1 else None
    found = []
    for k in places:
        gained = sum(group.members * sum(group.gains[:k]) for group in groups)
        drafting = sum(costs[number] for costs in drafts[:k])
        same = [[group.members] * k + [0] * (len(group.gains) - k) for group in groups]
        way = Way(tokens + gained, passes[k * number] + drafting, same)
        if sets is not None and k:
            i = bisect_right(sets.rows, k * number) - 1
            if sets.tokens[i] / sets.seconds[i] > _BETTER * way.tokens / way.seconds:
                way = Way(sets.tokens[i], sets.seconds[i], sets.taken(i, groups))
        found.append(way)
    return found


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
