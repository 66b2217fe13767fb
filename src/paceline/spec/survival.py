"""How likely drafts are to be accepted: counted, calibrated by the drafter's confidence, shifted by request.

Three questions are asked of what was seen so far, for draft j of a request whose drafts before it are accepted:

    before any is made     P(accept j)                                      counts by depth
    once j is made         P(accept j | log q of j)                         counts by depth and bin of confidence
    whether to make j      P(accept j | log q of j-1)                       counts by depth and bin of confidence

Each is a discounted Beta count with a prior, so that drafting starts at once and old text is forgotten. A request's own
history is one number, its log-odds against everybody's: p / (1 - p) is multiplied by e^shift. The shift follows the
gradient of the log-likelihood, y - p, and decays towards 0, which shrinks it to the common estimate.
Drafters are counted apart, and so are greedy requests and those that draw: log q means another thing there.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp, log
from operator import mul

from paceline.request import Request

# Bins of q, finest near 1: there lies the difference between one draft more and three.
_EDGES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.93, 0.96, 0.98, 0.99, 0.995)
_LOG_EDGES = tuple(log(edge) for edge in _EDGES)
_MIDDLES = tuple((low + high) / 2 for low, high in zip((0.0, *_EDGES), (*_EDGES, 1.0), strict=True))
# Priors of depths 1, 2, 3, ...: what trained modules do, and that what is fed its own output does worse.
_FIRST = (0.85, 0.8, 0.76, 0.72, 0.6, 0.5, 0.45, 0.4)
_PRIOR, _KEEP = 4.0, 0.998  # the prior counts as so many drafts; a count loses 1 in 500 with each new one
_FADE = 0.9  # what is left of a count above the prior's with each decision that nothing is worth drafting
_FOLLOWS, _RETURNS = 1 / 64, 0.01  # of the prior: toward each outcome, and back with each such decision
_RATE, _DECAY = 0.1, 0.97  # of a request's shift: how fast it follows one draft, what is left of it after one
_STEP, _LEVELS = 0.2, 8  # shifts are used in steps, so that requests of one level share their sums


Kind = tuple[str, bool]  # whose drafts, and whether they are drawn


class Rate:
    """A discounted Beta count: `mean` is the share of ones among what was seen, prior included. The prior follows what
    is seen, slowly: what comes back as that fades is how it was in the long run."""

    __slots__ = ("_first", "count", "mean", "prior")

    def __init__(self, prior: float) -> None:
        self.mean, self.count, self.prior, self._first = prior, _PRIOR, prior, prior

    def add(self, outcome: float) -> None:
        self.count = self.count * _KEEP + 1
        self.mean += (outcome - self.mean) / self.count
        self.prior += _FOLLOWS * (outcome - self.prior)

    def fade(self) -> None:
        """Nothing new is seen: what was seen counts less and less, and the prior comes back, later the first one."""
        self.count = max(_PRIOR, _FADE * self.count)
        self.mean += (1 - _FADE) * _PRIOR / self.count * (self.prior - self.mean)
        self.prior += _RETURNS * (self._first - self.prior)


def confidence_bin(log_q: float) -> int:
    return bisect(_LOG_EDGES, log_q)


def shifted(p: float, odds: float) -> float:
    """The probability whose odds are `odds` times those of p."""
    raised = p * odds
    return raised / (1 - p + raised)


@dataclass
class Depths:
    """The counts of one kind of request, by depth (0: the first draft)."""

    most: int
    plain: list[Rate] = field(init=False)
    seen: list[list[Rate]] = field(init=False)
    ahead: list[list[Rate]] = field(init=False)

    def __post_init__(self) -> None:
        first = [_FIRST[min(j, len(_FIRST) - 1)] for j in range(self.most)]
        self.plain = [Rate(p) for p in first]
        # Trained modules are right more often than they say; what follows a sure draft is a little surer.
        self.seen = [[Rate(0.4 + 0.58 * q) for q in _MIDDLES] for _ in first]
        self.ahead = [[Rate(p - 0.15 + 0.2 * q) for q in _MIDDLES] for p in first]


@dataclass
class History:
    """One request's row: whose it is, its shift, and of its present drafts what they looked like (bins of confidence)
    and the probability that all up to each are accepted (made)."""

    owner: Request
    kind: Kind
    shift: float = 0.0
    bins: list[int] = field(default_factory=list)
    made: list[float] = field(default_factory=list)

    @property
    def level(self) -> int:
        return max(-_LEVELS, min(_LEVELS, round(self.shift / _STEP)))


class Survival:
    """Estimates for at most `most` drafts, learned from verdicts.

    Example: a fresh one gives a chain of three drafts the probabilities .85, .85 * .8, .85 * .8 * .76."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kinds: dict[Kind, Depths] = {}
        self._rows: dict[int, History] = {}

    def history(self, request: Request) -> History:
        """That of the request's row; a new one when the row has changed hands."""
        found = self._rows.get(request.row)
        if found is None or found.owner is not request:
            kind = request.drafter or "", request.params.temperature > 0
            if kind not in self.kinds:
                self.kinds[kind] = Depths(self.most)
            found = self._rows[request.row] = History(request, kind)
        return found

    def chain(self, kind: Kind, level: int, length: int) -> list[float]:
        """P(the first j drafts are accepted), j = 1 .. length, before any is made."""
        odds, plain = exp(_STEP * level), self.kinds[kind].plain
        return list(accumulate((shifted(rate.mean, odds) for rate in plain[:length]), mul))

    def next(self, history: History, log_q: float) -> float:
        """The request's next draft was made, and this is its confidence: P(it and one more are accepted)."""
        counts, odds, bins, made = self.kinds[history.kind], exp(_STEP * history.level), history.bins, history.made
        bins.append(confidence_bin(log_q))
        made.append((made[-1] if made else 1.0) * shifted(counts.seen[len(made)][bins[-1]].mean, odds))
        if len(made) == self.most:
            return 0.0
        return made[-1] * shifted(counts.ahead[len(made)][bins[-1]].mean, odds)

    def fade(self) -> None:
        """Nothing is drafted, and texts change."""
        for counts in self.kinds.values():
            for rate in counts.plain:
                rate.fade()

    def learn(self, history: History, verified: int, agreed: int) -> None:
        """The target saw `verified` of the request's drafts; the first `agreed` were right (one more than `verified` at
        most: see `StepFacts`).

        What was drafted beyond that counts as what its confidence says: left out, it would make the depth look as good
        as those drafts that were thought worth a row."""
        history.shift *= _DECAY  # also where nothing was drafted, or a bad moment would last
        if not verified and not history.bins:
            return
        counts, bins, odds = self.kinds[history.kind], history.bins, exp(_STEP * history.level)
        known = max(verified, min(verified + 1, len(bins)))  # drafts whose fate is known, if all before it were right
        for j in range(min(agreed + 1, max(known, len(bins)))):
            rate = counts.seen[j][bins[j]] if j < len(bins) else counts.plain[j]
            expected = shifted(rate.mean, odds)
            outcome = float(j < agreed) if j < known else expected
            if j < known:
                history.shift += _RATE * (outcome - expected)
                if j < len(bins):
                    rate.add(outcome)
            counts.plain[j].add(outcome)
            if j and j <= len(bins):
                counts.ahead[j][bins[j - 1]].add(outcome)
