"""How far the modules of a chain are with one request, and what waits for each of them.

Module d's entry at slot s is made from token s and from the output at slot s - 1 of the module before it (depth 0: the
target). Each module is on its way through the slots for itself, and may rest: then it reads nothing, and what it would
read waits. A module that is back reads what has waited. Where more had to wait than is kept, it sees nothing before
that, and neither do those behind it.

While the next module rests, nobody needs what this one makes of a row, beside the keys and values that it keeps and the
one output that drafts (a pass may leave out the others). What it was made from is kept for as many rows as would wait:
once the next module is back, this one reads them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from paceline.request import Request

# Features kept for a module that rests, and how many may gather before older ones are dropped. Measured on held-out
# prompts at temperature 0.8, modules that come back after 32 tokens of an answer and go on for 64: with the last 16
# features 2.30 tokens a verification, with 64 2.47, with 256 as with all of them 2.52.
WINDOW, MOST = 64, 96
LONG = 4 * WINDOW  # rows of a pass; a piece of a longer one is copied, that it does not keep all of it in memory


@dataclass
class Strand:
    """One module's way. It read the slots first .. start - 1 and sees no others; `features` are the outputs before it
    at the slots start - 1, start, ..., in pieces, `waiting` rows in all. `past`: those of the last `passed` rows that
    it read, whose outputs the next module still lacks."""

    first: int = 0
    start: int = 0
    features: list[Tensor] = field(default_factory=list)
    waiting: int = 0
    past: list[Tensor] = field(default_factory=list)
    passed: int = 0

    def wait(self, piece: Tensor, count: int | None = None) -> None:
        """count: more rows than the piece has, where those before it are read already and `read` will tell so."""
        self.features.append(piece)
        self.waiting += piece.shape[0] if count is None else count  # of a tensor, `len` takes three times as long

    def read(self, count: int, silent: bool = False) -> None:
        """The module read the first `count` rows of what waits: all, or all but the last. silent: see `Track`."""
        if silent and count:
            self.passes(self.features if self.waiting == count else head(self.features, count), count)
        self.start, self.waiting = self.start + count, max(0, self.waiting - count)
        last = self.features[-1:]
        if self.waiting and last[0].shape[0] > 1:
            last[0] = last[0][-1:]
        self.features = last if self.waiting else []

    def passes(self, pieces: list[Tensor], count: int) -> None:
        """These rows are read, but nobody has what was made of them."""
        self.past += pieces
        self.passed += count

    def again(self) -> None:
        """Back to the first row whose output the next module lacks."""
        self.features, self.waiting = self.past + self.features, self.waiting + self.passed
        self.start, self.past, self.passed = self.start - self.passed, [], 0

    def drop(self, surplus: int) -> None:
        """Forgets the oldest `surplus` rows of what waits."""
        self.start, self.waiting = self.start + surplus, self.waiting - surplus
        cut(self.features, surplus)
        self.past, self.passed = [], 0


@dataclass(eq=False)
class Track:
    """One request. `strands[d - 1]` is module d's; `window`: slots that a draft sees at most, 0: all; `drafts` those of
    this step, of which `width` are planned at most; `goes_on`: whether there will be one more; `silent`: whether nobody
    wants what the last module that reads makes of its rows, beside drafts."""

    request: Request
    blocks: list[int]
    strands: list[Strand]
    window: int = 0
    width: int = 0
    drafts: list[int] = field(default_factory=list)
    goes_on: bool = False
    silent: bool = False

    @property
    def left(self) -> bool:
        """Whether the request finished, was aborted or preempted since, and gave its blocks back."""
        return self.request.blocks is not self.blocks

    def plan(self, width: int, silent: bool) -> None:
        """At most so many drafts in this step; the module behind them rests. None is made before the prompt's end: what
        waits of places farther from there than they will see is not read."""
        if self.window:
            self.skip(1, max(0, self.window - self.request.lag + 1))
        self.width, self.drafts, self.goes_on, self.silent = width, [], width > 0, silent
        for strand in self.strands[: width if not silent else max(0, width - 1)]:
            if strand.passed:
                strand.again()
        if width < len(self.strands):
            self.rest(width + 1)

    def rest(self, depth: int) -> None:
        """Module `depth` does not read now: what waits for it is bounded."""
        if self.strands[depth - 1].waiting > MOST:
            self.skip(depth, WINDOW)
        if depth > 1 and (before := self.strands[depth - 2]).passed > MOST:
            cut(before.past, before.passed - WINDOW)
            before.passed = WINDOW
            self.begin(depth, before.start - WINDOW + 1)

    def skip(self, depth: int, kept: int) -> None:
        """Of what waits for module `depth`, only the last `kept` rows will be read."""
        strand = self.strands[depth - 1]
        if strand.waiting > kept:
            strand.drop(strand.waiting - kept)
            strand.first = strand.start
            self.begin(depth + 1, strand.start + 1)

    def begin(self, depth: int, slot: int) -> None:
        """Module `depth` reads from this slot on, each one behind it from one slot later on."""
        for d, strand in enumerate(self.strands[depth - 1 :]):
            strand.first = strand.start = slot + d
            strand.features, strand.waiting = [], 0
            strand.past, strand.passed = [], 0

    def firsts(self, depth: int) -> tuple[int, ...]:
        """What an output of module `depth` depends on beside the tokens: where each module up to it begins to see."""
        return tuple(strand.first for strand in self.strands[:depth])


@dataclass
class Part:
    """A request's rows in a pass of module `depth`: the slots from `start` on, `committed` of them committed tokens,
    then drafts if the next draft is wanted (`drafts`)."""

    track: Track
    depth: int
    start: int
    committed: int
    tokens: list[int]
    drafts: bool

    @staticmethod
    def drafting(track: Track, depth: int) -> Part:
        """Rows for draft number `depth`: all that waits, and the drafts before it. Example: module 2 with a new token
        in slot 9 and the first draft, which goes to slot 10: start 9, committed 1, 2 tokens."""
        tokens, start = track.request.tokens, track.strands[depth - 1].start
        skipped = max(0, start - len(tokens))  # of a very short prompt
        return Part(track, depth, start, max(0, len(tokens) - start), tokens[start:] + track.drafts[skipped:], True)

    @staticmethod
    def absorbing(track: Track, depth: int, limit: int) -> Part:
        """Rows for what waits and is committed, in the slots below `limit`."""
        strand = track.strands[depth - 1]
        count = max(0, min(strand.waiting, limit - strand.start))
        return Part(track, depth, strand.start, count, track.request.tokens[strand.start : strand.start + count], False)

    @property
    def silent(self) -> bool:
        """Whether of these rows' outputs only the last is wanted, if any."""
        return self.track.silent and self.depth == min(self.track.width, len(self.track.strands))

    @property
    def wanted(self) -> int:
        """How many rows' outputs are: the last ones'."""
        return 1 if self.silent else len(self.tokens)

    def take(self) -> list[Tensor]:
        """The features of these rows, in pieces. What waits beyond the committed rows is left to the strand."""
        strand, count = self.track.strands[self.depth - 1], self.committed
        pieces, left = strand.features, strand.waiting - count
        strand.features, strand.start, strand.waiting = [], self.start + count, max(0, left)
        if left > 0:
            strand.features = [tail(pieces, count, left)]
            if not self.drafts:
                pieces = head(pieces, count)
        if count and self.silent and self.depth < len(self.track.strands):
            strand.passes(pieces if count == len(self.tokens) else head(pieces, count), count)
        return pieces

    def pass_on(self, outputs: Tensor) -> None:
        """outputs: of these rows. They wait for the next module, which there is; those of drafts only if it drafts at
        once."""
        strand = self.track.strands[self.depth]
        if not self.track.goes_on and outputs.shape[0] > self.committed:
            outputs = outputs[: self.committed]
        if outputs.shape[0]:
            strand.features.append(outputs)
            strand.waiting += self.committed

    def ended_blocks(self, block_size: int) -> Iterator[tuple[int, int]]:
        """Of the blocks whose last slots are among the committed rows: (row, block)."""
        start, end = self.start, self.start + self.committed
        if end // block_size > start // block_size:
            for index in range(start // block_size, end // block_size):
                yield (index + 1) * block_size - 1 - start, self.track.blocks[index]


def cut(pieces: list[Tensor], count: int) -> None:
    """In place, forgets the first `count` rows."""
    while count and count >= pieces[0].shape[0]:
        count -= pieces.pop(0).shape[0]
    if count:
        pieces[0] = pieces[0][count:].clone()


def tail(pieces: list[Tensor], skipped: int, count: int) -> Tensor:
    """Rows skipped .. skipped + count - 1 of the pieces, which lie in one of them."""
    for piece in pieces:
        if skipped < piece.shape[0]:
            found = piece[skipped : skipped + count]
            return found.clone() if piece.shape[0] > LONG else found
        skipped -= piece.shape[0]
    raise AssertionError("fewer rows wait than were counted")


def head(pieces: list[Tensor], count: int) -> list[Tensor]:
    """The first `count` rows of the pieces."""
    found = []
    for piece in pieces:
        found.append(piece[:count])
        count -= found[-1].shape[0]
        if not count:
            break
    return found
