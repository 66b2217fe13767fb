"""How far the modules of a chain are with one request, and what waits for each of them.

Module d's entry at slot s is made from token s and from the output at slot s - 1 of the module before it (depth 0: the
target). Each module is on its way through the slots for itself, and may rest: then it reads nothing, and what it would
read waits. A module that is back reads what has waited. Where more had to wait than is kept, it sees nothing before
that, and neither do those behind it.
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
    at the slots start - 1, start, ..., in pieces, `waiting` rows in all."""

    first: int = 0
    start: int = 0
    features: list[Tensor] = field(default_factory=list)
    waiting: int = 0

    def wait(self, piece: Tensor, count: int | None = None) -> None:
        """count: more rows than the piece has, where those before it are read already and `read` will tell so."""
        self.features.append(piece)
        self.waiting += piece.shape[0] if count is None else count  # of a tensor, `len` takes three times as long

    def read(self, count: int) -> None:
        """The module read the first `count` rows of what waits: all, or all but the last."""
        self.start, self.waiting = self.start + count, max(0, self.waiting - count)
        last = self.features[-1:]
        if self.waiting and last[0].shape[0] > 1:
            last[0] = last[0][-1:]
        self.features = last if self.waiting else []

    def drop(self, surplus: int) -> None:
        """Forgets the oldest `surplus` rows of what waits."""
        self.start, self.waiting = self.start + surplus, self.waiting - surplus
        while surplus and surplus >= self.features[0].shape[0]:
            surplus -= self.features.pop(0).shape[0]
        if surplus:
            self.features[0] = self.features[0][surplus:].clone()


@dataclass(eq=False)
class Track:
    """One request. `strands[d - 1]` is module d's; `drafts` those of this step, of which `width` are planned at most;
    `goes_on`: whether there will be one more."""

    request: Request
    blocks: list[int]
    strands: list[Strand]
    width: int = 0
    drafts: list[int] = field(default_factory=list)
    goes_on: bool = False

    @property
    def left(self) -> bool:
        """Whether the request finished, was aborted or preempted since, and gave its blocks back."""
        return self.request.blocks is not self.blocks

    def plan(self, width: int) -> None:
        """At most so many drafts in this step; the module behind them rests."""
        self.width, self.drafts, self.goes_on = width, [], width > 0
        if width < len(self.strands):
            self.rest(width + 1)

    def rest(self, depth: int) -> None:
        """Module `depth` does not read now: what waits for it is bounded."""
        strand = self.strands[depth - 1]
        if strand.waiting > MOST:
            strand.drop(strand.waiting - WINDOW)
            strand.first = strand.start
            self.begin(depth + 1, strand.start + 1)

    def begin(self, depth: int, slot: int) -> None:
        """Module `depth` reads from this slot on, each one behind it from one slot later on."""
        for d, strand in enumerate(self.strands[depth - 1 :]):
            strand.first = strand.start = slot + d
            strand.features, strand.waiting = [], 0

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

    def take(self) -> list[Tensor]:
        """The features of these rows, in pieces. What waits beyond the committed rows is left to the strand."""
        strand, count = self.track.strands[self.depth - 1], self.committed
        pieces, left = strand.features, strand.waiting - count
        strand.features, strand.start, strand.waiting = [], self.start + count, max(0, left)
        if left > 0:
            strand.features = [tail(pieces, count, left)]
            if not self.drafts:
                pieces = head(pieces, count)
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
