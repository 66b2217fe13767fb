"""Documents packed into rows of one length, and rows dealt out as batches: the same ones for the same seed and step."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from paceline.errors import UserError
from paceline.train.corpus import Corpus

PADDING = -1  # the document id of places that hold nothing
OPEN_ROWS = 256


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents, all [B, T]: tokens; positions (from 0 in each document); documents (PADDING: empty);
    counted: tokens whose prediction counts in the loss."""

    tokens: Tensor
    positions: Tensor
    documents: Tensor
    counted: Tensor

    def rows(self, start: int, end: int) -> Batch:
        return Batch(*(part[start:end] for part in self._parts()))

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device) for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.tokens, self.positions, self.documents, self.counted


Piece = tuple[int, int]  # where a document, or a part of one that is longer than a row, starts and ends in the corpus


class Packed:
    """`packed[r]` lists the pieces of row r. `batch` makes tensors of chosen rows; `step` deals rows out by seed and
    epoch."""

    def __init__(self, corpus: Corpus, rows: list[list[Piece]], length: int, seed: int, answers_only: bool) -> None:
        self.corpus, self.packed, self.length, self.seed = corpus, rows, length, seed
        self.counts = corpus.answers if answers_only else torch.ones_like(corpus.answers)

    def __len__(self) -> int:
        return len(self.packed)

    @cached_property
    def fingerprint(self) -> str:
        """Of all that its batches are made of: text, order, repeats. Not of what counts: a later stage of a run may
        count other tokens."""
        pieces = torch.tensor([place for row in self.packed for piece in row for place in piece])
        sizes = torch.tensor([len(row) for row in self.packed])
        digest = hashlib.sha256(f"{self.length} {self.seed}".encode())
        for part in (self.corpus.tokens, pieces, sizes):
            digest.update(part.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def step(self, step: int, rows: int) -> Batch:
        """The batch of a step: `rows` rows (all, if there are fewer). Every epoch has its own order; rows that do not
        fill a batch at its end are left out."""
        per_epoch = max(len(self) // rows, 1)
        epoch, index = divmod(step, per_epoch)
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        return self.batch(order[index * rows : (index + 1) * rows].tolist())

    def batch(self, rows: Sequence[int]) -> Batch:
        shape = (len(rows), self.length)
        tokens, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        documents, counted = torch.full(shape, PADDING), torch.zeros(shape, dtype=torch.bool)
        for r, row in enumerate(rows):
            at = 0
            for number, (start, end) in enumerate(self.packed[row]):
                place = slice(at, at + end - start)
                tokens[r, place] = self.corpus.tokens[start:end]
                positions[r, place] = torch.arange(end - start)
                documents[r, place] = number
                counted[r, place] = self.counts[start:end]
                at += end - start
        return Batch(tokens, positions, documents, counted)

    def sources(self, rows: Sequence[int]) -> Tensor:
        """[B, T]: the source of each place of `batch(rows)`, as a number into the corpus's names."""
        found = torch.zeros((len(rows), self.length), dtype=torch.int64)
        for r, row in enumerate(rows):
            starts, ends = torch.tensor(self.packed[row]).t().contiguous()
            of_piece = self.corpus.sources[torch.searchsorted(self.corpus.ends, starts, right=True)]
            found[r, : int((ends - starts).sum())] = of_piece.repeat_interleave(ends - starts)
        return found


def pack(
    corpus: Corpus, length: int, seed: int, *, answers_only: bool = False, repeat: Mapping[str, float] | None = None
) -> Packed:
    """Packs every document as often as its source's `repeat` says (1.5: once, and every second one twice).

    Documents come in an order drawn from `seed`; each goes to the fullest open row where it still fits. Pieces of a
    document longer than a row are documents of their own. Raises UserError for a source in `repeat` that is not
    there, or when nothing is left."""
    draw = random.Random(seed)
    pieces = _pieces(corpus, length, draw, repeat or {})
    if not pieces:
        raise UserError("--repeat leaves no document to train on; let some source count.")
    draw.shuffle(pieces)
    rows: list[list[Piece]] = []
    open_rows: list[tuple[int, int]] = []  # (space left, row), ascending
    for piece in pieces:
        size = piece[1] - piece[0]
        fit = bisect_left(open_rows, (size, -1))
        if fit == len(open_rows):
            if len(open_rows) == OPEN_ROWS:
                open_rows.pop(0)
            space, row = length, len(rows)
            rows.append([])
        else:
            space, row = open_rows.pop(fit)
        rows[row].append(piece)
        insort(open_rows, (space - size, row))
    return Packed(corpus, rows, length, seed, answers_only)


def _pieces(corpus: Corpus, length: int, draw: random.Random, repeat: Mapping[str, float]) -> list[Piece]:
    unknown = set(repeat) - set(corpus.names)
    if unknown:
        known = ", ".join(sorted(corpus.names))
        raise UserError(
            f"--repeat names the source {sorted(unknown)[0]!r}, which is not in the data; there are: {known}."
        )
    factors = [repeat.get(name, 1.0) for name in corpus.names]
    pieces: list[Piece] = []
    start = 0
    for end, source in zip(corpus.ends.tolist(), corpus.sources.tolist(), strict=True):
        times, rest = divmod(factors[source], 1.0)
        cuts = [(at, min(at + length, end)) for at in range(start, end, length)]
        pieces += cuts * (int(times) + (draw.random() < rest))
        start = end
    return pieces
