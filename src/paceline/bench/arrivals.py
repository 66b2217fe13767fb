"""When requests come in an open loop."""

from __future__ import annotations

import random
from itertools import accumulate


def poisson(rate: float, count: int, seed: int) -> tuple[float, ...]:
    """Seconds after the start at which `count` requests come, `rate` of them a second on the average: the pauses are
    exponential. The same seed gives the same pattern at every rate, faster or slower."""
    rng = random.Random(seed)
    return tuple(accumulate(rng.expovariate(1.0) / rate for _ in range(count)))
