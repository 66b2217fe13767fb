"""Whether drafting really is faster: the rates of steps with drafts and of steps without, as measured.

The policy's forecast rests on a table and on estimates; what neither holds (caches that drafts push weights out of,
modules that read prompts, the policy's own time) is in the clock. So batches of each size try both ways, and where
drafting turns out slower it rests, for longer each time that happens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_TRIAL, _CHECK = 24, 4  # steps with drafts before they are judged, and without
_AGAIN = 256  # steps with drafts until those without are measured anew
_REST, _LONGEST = 64, 4096  # decisions without drafts after a defeat, doubled with each further one
_KEEP = 0.97  # of what was measured, with each new step


@dataclass
class Pace:
    """Tokens and seconds of recent steps of one kind."""

    tokens: float = 0.0
    seconds: float = 0.0
    steps: int = 0

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens = self.tokens * _KEEP + tokens
        self.seconds = self.seconds * _KEEP + seconds
        self.steps += 1

    def faster_than(self, other: Pace) -> bool:
        """tokens / seconds against tokens / seconds."""
        return self.tokens * other.seconds > other.tokens * self.seconds


@dataclass
class Match:
    """Batches of one size. `rest`: steps without drafts to come; `pause`: how many after the next defeat."""

    drafting: Pace = field(default_factory=Pace)
    plain: Pace = field(default_factory=Pace)
    rest: int = 0
    pause: int = _REST

    def judge(self) -> None:
        """Both were measured: drafting goes on, or rests and is tried anew after that."""
        if self.drafting.faster_than(self.plain):
            self.pause = _REST
        else:
            self.drafting, self.rest, self.pause = Pace(), self.pause, min(2 * self.pause, _LONGEST)


class Referee:
    """By the number of requests that decode. Example: 24 steps with drafts, then 4 without; if those were faster, the
    next 64 go without drafts too, then there is another trial."""

    def __init__(self) -> None:
        self._matches: dict[int, Match] = {}

    def allows(self, requests: int) -> bool:
        """Whether this step may draft."""
        match = self._matches.setdefault(requests, Match())
        if match.rest:
            match.rest -= 1
            return False
        return match.drafting.steps < _TRIAL or match.plain.steps >= _CHECK

    def learn(self, requests: int, drafted: bool, tokens: int, seconds: float) -> None:
        """A step without prompts, of so many requests, brought so many tokens. seconds: all of it."""
        match = self._matches.setdefault(requests, Match())
        (match.drafting if drafted else match.plain).add(tokens, seconds)
        if drafted and match.drafting.steps % _AGAIN == 0:
            match.plain.steps = 0
        elif match.drafting.steps >= _TRIAL and match.plain.steps >= _CHECK:
            match.judge()
