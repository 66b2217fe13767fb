"""How many drafts: what the forecast says, corrected by the clock.

A forecast is as good as its table, and what no table holds (caches that drafts push weights out of) is in the clock. So
for batches of each size there are a few ways to go: no drafts, and 1, 2, 3, 5 or 8 for each request. How much longer
each takes than forecast is believed more or less (`belief`), and the way that seems best is gone:

    score = log(tokens / seconds as forecast) - error believed - (3 % if there are drafts)

Another way is tried for some steps where what may be learned is worth more than it costs. A look at it would move its
difference d to the best one by a Gaussian of standard deviation s; only where that turns the sign is anything gained:

    gain = s (phi(d / s) - d / s Phi(-d / s)), for as long as knowledge lasts       cost = d for a trial, and the change

A change costs what modules have to read before they draft again; it must be earned as well. A trial that is still worth
it goes on. What is not looked at for long is believed less and less, so everything is tried again some day, the sooner
the closer it was. While nothing changes, decisions become rare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import erfc, exp, log, pi, sqrt
from operator import truediv
from statistics import median
from typing import Any

from paceline.spec.belief import Belief, prior_of

BUCKET = 1.25  # batches whose sizes differ by less than this factor are judged together
_PLACES = (1, 2, 3, 5, 8)  # drafts for each request: the ways are few, for each costs trials
_USE = 500  # steps for which knowledge is of use
_CHECK, _CLEAR, _RARELY = 400, 0.3, 4  # steps with drafts after which none are tried again; of a clear lead more
_SOON = 64  # and least steps over which a change must be earned: as many as the one before it stood
_CREDIT, _SHARE = 40, 0.01  # what trials may lose: steps at once, and of all steps in the long run
_FRESH, _FRESH_PLAIN, _FRESH_WAKING = 1, 4, 2  # first steps of a way that tell nothing: other drafts; none; after none
_COLD, _DOUBTED = 32, 4.0  # first steps of all, in which everything is slow; how much noisier they count
_LOOKS, _GLANCES = 8, 3  # steps that are looked at before a decision; of a trial
_STAY, _SECONDS = 32, 0.25  # between two decisions, where nothing changes: steps, or more if they take less than that
_ENOUGH = 2  # looks, and standard deviations, after which a trial may be hopeless
_NOISE, _QUIET, _FOLLOWS = 0.1, 0.03, 0.1  # of one step, at first; at least; how fast its estimate follows
_PLAIN = 0.03  # what drafts must bring, for nothing may be slower than none
_STALE, _MOST_KNOWN = 0.03, 256  # what is forgotten from one engine to the next; sizes that are remembered
_KINDS = 1000  # more than there are sizes of batches that are told apart
_UNLIKE = 0.5  # what is forgotten when a batch is judged by what is known of one e times as large


class Referee:
    """most: drafts of a request. `places`: the ways, as drafts of each request; `trials`: how many there were. known:
    what another one knew, see `known`; it is trusted for the most part, and what is no such thing not at all."""

    def __init__(self, most: int, known: Mapping[str, Any] | None = None) -> None:
        self.places = (0, *(place for place in _PLACES if place < most), most)
        self.trials = 0
        self._prior = prior_of(self.places)
        self._belief, self._beliefs = Belief(self._prior), self._remembered(known or {})
        self._variance = _NOISE**2  # of one step against what was expected
        self._key, self._size, self._step = 1 << 30, 1, 0  # batches of late: which beliefs, how large; steps so far
        self._way, self._best, self._gap = 0, 0, 0.0  # what is done; what seemed best; by how much
        self._left, self._done, self._fresh = 0, 0, 0  # steps to the next decision; since the last; that tell nothing
        self._stay, self._errors = _LOOKS, list[float]()  # steps while nothing changes; what was seen
        self._plain = 0  # when no drafts were last tried
        self._stood = _USE  # steps since another way became the best
        self._credit = float(_CREDIT)  # steps that trials may lose by now

    def choose(
        self,
        requests: int,
        tokens: Sequence[float],
        seconds: Sequence[float],
        reading: Sequence[float],
        kind: int = 0,
    ) -> tuple[int, int]:
        """Which way to go with so many requests, and for how many steps. By way: tokens and seconds of a step; reading:
        seconds that modules take before they can draft so deep; what shallower ones take is part of it. kind: of the
        batch; what is known of one kind tells nothing of another that forecasts know nothing of."""
        self._conclude()
        self._turn_to(requests, kind)
        belief = self._belief
        rates = map(truediv, tokens, seconds)
        scores = [log(rate) - belief.error(k) - _PLAIN * (k > 0) for k, rate in enumerate(rates)]
        changing = [x / s if x > reading[self._way] else 0.0 for x, s in zip(reading, seconds, strict=True)]
        earned = max(_SOON, self._stood)
        best = max(range(len(scores)), key=lambda k: scores[k] - changing[k] / earned)
        way = self._tried(scores, best, changing) if best == self._best else best
        longest = max(_STAY, round(_SECONDS / seconds[way]))
        if best != self._best:
            self._stay, self._stood = _LOOKS, 0
        elif way == best == self._way:
            self._stay = min(2 * self._stay, longest)
        fresh = self._fresh_of(way)
        self._plain = self._step if not way else self._plain
        self.trials += way != best and fresh > 0
        self._left = fresh + (self._stay if way == best == self._best else _GLANCES)
        self._way, self._best, self._gap = way, best, scores[best] - scores[way]
        self._done, self._fresh = 0, fresh
        return way, self._left

    def looks(self, steps: int = 1) -> bool:
        """Asked once a step, as it begins, or of so many of one kind: whether it wants to hear of the last one."""
        self._left, self._done = self._left - steps, self._done + steps
        return self._left < _LOOKS

    def learn(self, expected: float, seconds: Sequence[float], clean: bool) -> bool:
        """Steps of what was chosen, if it `looks`, most often one. expected: what the table says of each. clean: no
        prompts had a part in them. True: this trial has failed already, choose anew."""
        told = self._done - self._fresh  # so many of the last ones
        if clean and told > 0:
            self._errors += [log(max(each, 1e-9) / expected) for each in seconds[-min(told, _LOOKS) :]]
        return self._way != self._best and self._is_hopeless()

    def known(self) -> dict[str, Any]:
        """What is known of the table's errors, by sizes of batches: plain values."""
        return {str(key): belief.errors() for key, belief in self._beliefs.items()}

    # -- parts

    def _remembered(self, known: Mapping[str, Any]) -> dict[int, Belief]:
        found = {}
        for key, errors in list(known.items())[:_MOST_KNOWN]:
            with suppress(TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError):
                belief = Belief.of_errors(self._prior, errors["mean"], errors["cov"])
                if belief is not None:
                    belief.forget(_STALE)
                    found[int(key)] = belief
        return found

    def _conclude(self) -> None:
        """What came of the steps since the last decision."""
        belief, errors = self._belief, self._errors
        self._step += self._done
        self._stood += self._done
        self._credit = min(_CREDIT, self._credit + _SHARE * self._done)
        belief.pass_time(self._step)
        if errors:
            unsure, cold = belief.variance(self._way), self._step < _COLD
            noise = self._variance * (_DOUBTED if cold else 1.0)
            off = belief.learn(self._way, median(errors), noise / len(errors))
            if self._way == self._best and not self._fresh and not cold:
                seen = min(len(errors) * (off**2 - unsure), 9 * self._variance)  # how far off looks were beyond that
                self._variance = max(_QUIET**2, self._variance + _FOLLOWS * (seen - self._variance))
        self._errors = []

    def _tried(self, scores: list[float], best: int, changing: list[float]) -> int:
        """The way from whose trial most is to be expected, if any is worth it; else the best."""
        often = 1 if scores[best] - scores[0] < _CLEAR else _RARELY
        if best and self._step - self._plain > often * _CHECK:
            return 0
        found, most, price, noise = best, 0.0, 0.0, self._variance / _GLANCES
        for k, score in enumerate(scores):
            if k != best:
                gap, fresh = scores[best] - score, self._fresh_of(k)
                cost = gap * (_GLANCES + fresh) + changing[k]
                value = _USE * _hoped(gap, self._belief.told_apart(k, best, noise)) - cost
                if value > most and cost <= self._credit:
                    found, most, price = k, value, cost
        self._credit -= price
        return found

    def _fresh_of(self, way: int) -> int:
        """Its first steps that will tell nothing, for modules absorb, and caches hold something else; none where it is
        done already."""
        if way == self._way:
            return 0
        return _FRESH_PLAIN if not way else _FRESH if self._way else _FRESH_WAKING

    def _is_hopeless(self) -> bool:
        """Whether even the quickest of some looks says that this trial is not worth more."""
        if len(self._errors) < _ENOUGH:
            return False
        off = min(self._errors) - self._belief.expected(self._way)
        return self._gap + off > _ENOUGH * sqrt(self._variance)

    def _turn_to(self, requests: int, kind: int) -> None:
        """What is believed of batches of about this size, or of those of late, whichever tells more."""
        key = _KINDS * kind + (round(log(requests) / log(BUCKET)) if requests > 3 else requests - 3)
        if key == self._key:
            return
        alike = round(self._key / _KINDS) == kind
        lately = self._belief.copy() if alike else Belief(self._prior, self._step)
        lately.forget(1 - exp(-_UNLIKE * abs(log(requests / self._size))))
        known = self._beliefs.get(key)
        if known is not None:
            known.pass_time(self._step)
        if known is None or lately.doubts < known.doubts:
            known = self._beliefs[key] = lately
        self._key, self._size, self._belief = key, requests, known


def _hoped(gap: float, spread: float) -> float:
    """E max(0, x) of a Gaussian x with mean -gap."""
    if spread <= 0:
        return 0.0
    z = gap / spread
    return spread * (exp(-z * z / 2) / sqrt(2 * pi) - z * erfc(z / sqrt(2)) / 2)
