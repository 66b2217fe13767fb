"""How many drafts: what the forecast says, corrected by the clock.

A forecast is as good as its table, and what no table holds (caches that drafts push weights out of) is in the clock. So
for batches of each size there are a few ways to go: no drafts, and 1, 2, 3, 5 or 8 for each request on the average.
Each way has a correction: how much longer its steps take than forecast. The way with the best corrected rate is taken,
and every other way that might be better, as far as its correction is uncertain, is tried for some steps now and then.
What trials lose is paid from an account that gets 0.4 % of the time.

    score = log(tokens / seconds as forecast) - correction          tried: score + 2 spread / sqrt(1 + steps) > the best

All forecasts also share a level, which follows a machine that is slow for a while: the ways are compared with each
other, and not one's past with another's present.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt

from paceline.spec.allocate import Sets

BUCKET = 1.25  # batches whose sizes differ by less than this factor are judged together
_PLACES = (1, 2, 3, 5, 8)  # drafts for each request: the ways are few, for each costs trials
_TRIAL, _STAY, _REST = 5, 32, 32  # steps between two decisions: of a trial or while unsure; with drafts; without
_FRESH, _FRESH_PLAIN = 1, 4  # first steps of a way that tell nothing: modules absorb, caches hold something else
_SETTLED = 16  # steps after which a way is known well enough not to be looked at all the time
_SKIP = 4  # of so many steps one is looked at, once a way is known
_ACCOUNT, _START = 0.004, 2.0  # share of the time for trials; steps in the account at first, and at most
_SPREAD = 0.06  # of a way never tried: the table's error and one step's noise
_KNOWN, _FORGET = 80.0, 1 / 2048  # steps that count at most; what is lost of them with each step
_PRIOR = 1.25  # a way's first step counts almost as what it was, another way's estimate for it a little
_BESIDE = 0.25  # what a step counts for the ways beside its own
_LEVEL = 0.02  # how fast the level follows, and what is known of noise
_SLOWER, _QUICKER = 0.3, 0.5  # the most that one step counts, in logarithms: other processes only ever add time
_SURER = 2  # times as much is doubted that no drafts are slower
_TRIFLE = 0.025  # gains that are not worth a trial
_HOPELESS = 0.1  # so much slower than the best, in logarithms, ends a trial early
_STAYING, _CHANGING = 0.01, 0.02  # in favour of what is done already; against beginning or ending to draft
_MARGIN, _WIDE = 0.03, 0.02  # against drafts, and each draft a request: prompts are read by as many modules


@dataclass
class Way:
    """`slower`: logarithm of measured over forecast seconds, against the level; `steps` it was learned from."""

    slower: float = 0.0
    steps: float = 0.0


@dataclass
class Trial:
    """`gap`: its score without its correction, against the best one's."""

    place: int
    gap: float


class Referee:
    """most: drafts of a request. `trials`: how many there were."""

    def __init__(self, most: int) -> None:
        self.places = (0.0, *(float(place) for place in _PLACES if place < most), float(most))
        self.trials = 0
        self._ways: dict[int, list[Way]] = {}
        self._level, self._account, self._tick = 0.0, inf, 0
        self._noise = 0.0  # of a step, against what was expected: its mean size
        self._seconds, self._given = 0.0, 0  # of a step of late; the steps of the last decision
        self._place, self._share, self._fresh = 0, 0.0, _FRESH  # what is done now, and how new that is
        self._trial: Trial | None = None

    def choose(self, requests: int, sets: Sets) -> tuple[int, int]:
        """Which of the sets to draft for so many requests, and for how many steps."""
        ways = self._of(requests)
        for way in ways:
            way.steps -= way.steps * _FORGET * self._given
        if self._seconds:
            earned = self._account + _ACCOUNT * self._seconds * self._given
            self._account = min(earned, _START * sets.seconds[0])
        slower = self._corrections(ways)
        shares = [rows / requests for rows in sets.rows]
        scores = [
            log(tokens / seconds) - self._between(slower, share)
            for tokens, seconds, share in zip(sets.tokens, sets.seconds, shares, strict=True)
        ]
        best = self._best(scores, shares)
        chosen, self._trial = best, None
        if self._seconds and self._account > 0:
            chosen = self._tried(ways, slower, scores, shares, best)
            if chosen != best:
                place = self._nearest(shares[chosen])
                self._trial = Trial(place, scores[chosen] + slower[place] - scores[best])
                self.trials += 1
        place = self._nearest(shares[chosen])
        if place != self._place:
            self._fresh = _FRESH if place else _FRESH_PLAIN
        self._place, self._share = place, shares[chosen]
        unsure = self._trial is not None or ways[place].steps < _SETTLED
        trial = _TRIAL if chosen else _TRIAL + _FRESH_PLAIN
        self._given = trial if unsure else _STAY if chosen else _REST
        return chosen, self._given

    def looks(self) -> bool:
        """Whether it wants to hear of the step that is over."""
        self._tick += 1
        return self._given < _STAY or self._tick % _SKIP == 0

    def learn(self, requests: int, expected: float, seconds: float, clean: bool) -> bool:
        """A step of what was chosen, if it `looks`. expected: what the table says of it. clean: no prompts were read
        beside it. True: this trial has failed already, choose anew."""
        error = log(max(seconds, 1e-9) / expected) - self._level if clean else 0.0
        self._seconds = seconds
        ways = self._of(requests)
        fresh, self._fresh = self._fresh, max(0, self._fresh - 1)
        if clean and not fresh:
            self._correct(ways, error)
        if self._trial is None:
            return False
        gain = self._trial.gap - self._corrections(ways)[self._place]
        usual = expected * exp(self._level) if fresh else seconds  # what the first step absorbs is a price too
        self._account -= max(0.0, seconds - usual) + usual * (1 - exp(min(1.0, gain)))
        return not fresh and gain + self._doubt(ways[self._place].steps) < -_HOPELESS

    def _correct(self, ways: list[Way], error: float) -> None:
        slower = self._corrections(ways)
        error = max(-_QUICKER, min(_SLOWER, error - self._between(slower, self._share)))
        self._noise += _LEVEL * (abs(error) - self._noise)
        if self._trial is None:
            self._level += _LEVEL * error
        i, part = self._where(self._share)
        for k, weight in ((i, 1 - part), (i + 1, part)):
            if weight:
                way = ways[k]
                way.slower = slower[k] + weight * error / (_PRIOR + way.steps)
                way.steps = min(way.steps + weight, _KNOWN)

    # -- parts

    def _doubt(self, steps: float) -> float:
        """How much better a way might be than so many steps say, in logarithms: two standard deviations."""
        return 2 * max(_SPREAD, self._noise) / sqrt(1 + steps)

    def _best(self, scores: list[float], shares: list[float]) -> int:
        """The best score, with a little more for what is done already and for no drafts."""
        at = self.places[self._place]

        def value(i: int) -> float:
            against = (_MARGIN + _WIDE * shares[i] if i else 0.0) + _CHANGING * ((i > 0) is not (at > 0))
            return scores[i] + _STAYING * (abs(shares[i] - at) < 0.5) - against

        return max((i for i, share in enumerate(shares) if share in self.places), key=value)

    def _tried(self, ways: list[Way], slower: list[float], scores: list[float], shares: list[float], best: int) -> int:
        """The set most likely to be better than the best, if any is."""
        found, most = best, scores[best]
        here = self._nearest(shares[best])
        steps = [way.steps for way in ways]
        for place, (way, share) in enumerate(zip(ways, self.places, strict=True)):
            i = bisect_left(shares, share)
            if i == len(shares) or place == here or self._nearest(shares[i]) != place:
                continue
            known = max(way.steps, _BESIDE * max(steps[max(1, place - 1) : place + 2]) if place else 0.0)
            # A table that was wrong for the nearest way may be as wrong for one that was never tried.
            spread = _SPREAD if way.steps else _SPREAD + abs(slower[place])
            sure = 1 if place else _SURER  # nothing may be slower than no drafts
            might = scores[i] + sure * spread / _SPREAD * self._doubt(known) - _TRIFLE
            if not best and way.steps < 1 and place <= 2:
                might = most + _TRIFLE  # never off for good
            if might > most:
                found, most = i, might
        return found

    def _of(self, requests: int) -> list[Way]:
        """The ways of batches of about this size; at first as those of the next size that is known."""
        key = round(log(requests) / log(BUCKET)) if requests > 3 else requests - 3
        found = self._ways.get(key)
        if found is None:
            near = min(self._ways, key=lambda other: (abs(other - key), other), default=None)
            known = self._ways[near] if near is not None else [Way() for _ in self.places]
            found = self._ways[key] = [Way(way.slower, min(way.steps, 1.0)) for way in known]
        return found

    def _corrections(self, ways: list[Way]) -> list[float]:
        """Of each way; of one that was never tried, that of the nearest one that was."""
        known = [k for k, way in enumerate(ways) if way.steps]
        if len(known) in (0, len(ways)):
            return [way.slower for way in ways]
        return [ways[min(known, key=lambda other: (abs(other - k), other))].slower for k in range(len(ways))]

    def _where(self, share: float) -> tuple[int, float]:
        """The place at or before so many drafts a request, and the part of the way to the next one."""
        places = self.places
        i = max(0, min(bisect_left(places, share), len(places) - 1))
        if places[i] == share:
            return i, 0.0
        return i - 1, (share - places[i - 1]) / (places[i] - places[i - 1])

    def _nearest(self, share: float) -> int:
        i, part = self._where(share)
        return i + (part > 0.5)

    def _between(self, values: Sequence[float], share: float) -> float:
        i, part = self._where(share)
        return values[i] if not part else (1 - part) * values[i] + part * values[i + 1]
