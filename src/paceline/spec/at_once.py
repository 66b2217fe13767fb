"""What a call of several modules leaves of each, when all are through: where its way goes on, and what waits for the
next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.kernels.chain import Asked
from paceline.spec.strands import Part, Track


class Reading(NamedTuple):
    """Module `depth` (from 0) read the request's committed tokens as far as `length`, and drafts behind them. There are
    `rows` of outputs, the first ones those of committed tokens; of a silent one those of drafts at most."""

    track: Track
    depth: int
    rows: int
    length: int

    @property
    def start(self) -> int:
        return self.track.strands[self.depth].start

    @property
    def committed(self) -> int:
        return max(0, self.length - self.start)


def as_asked(track: Track) -> Asked:
    """What a compiled chain is told of a request that drafts."""
    strands = track.strands[: track.width]
    firsts = [max(d, strand.first) for d, strand in enumerate(strands, 1)]
    request, starts = track.request, [strand.start for strand in strands]
    heat = request.params.heat or 0.0
    return Asked(track.width, request.tokens, starts, firsts, track.blocks, request.seed, heat, track.silent)


def carried(tracks: Sequence[Track]) -> list[Tensor]:
    """The features that wait, module by module, request by request; tracks: in order of falling width."""
    return [
        piece
        for d in range(min(tracks[0].width, len(tracks[0].strands)))
        for track in tracks
        if track.width > d
        for piece in track.strands[d].features
    ]


def joined(pieces: list[Tensor]) -> Tensor:
    """One behind the other; there is at least one."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def note(readings: Sequence[Reading], outputs: Tensor, block_size: int) -> list[tuple[Part, int]]:
    """What is noted after each module where each is a call of its own. outputs: of one reading behind the other; the
    modules behind have read them already. What ended blocks, and the rows of `outputs` where these parts begin."""
    ended: list[tuple[Part, int]] = []
    counts: list[int] = []
    sizes: list[int] = []  # of all rows, in turn: what nobody waits for, and what the next module does
    past = row = 0
    for reading in readings:
        track, d, rows, _ = reading
        count, modules = reading.committed, len(track.strands)
        silent = track.silent and d + 1 == min(track.width, modules)
        again = track.silent and track.width < modules  # its last module may read these rows once more
        waiting = 0 if silent else count if d + 1 >= track.width - again else min(count, 1)
        counts.append(count)
        ends = rows if silent else count
        sizes += (past + ends - waiting, waiting)
        if (reading.start + count) // block_size > reading.start // block_size:
            ended.append((Part(track, d + 1, reading.start, count, [], True), row))
        past, row = rows - ends, row + rows
    made = outputs.split_with_sizes([*sizes, outputs.shape[0] - sum(sizes)])[1::2]
    for (track, d, _, _), count, waits in zip(readings, counts, made, strict=True):
        further = d + 1 < len(track.strands)
        silent = track.silent and d + 1 == track.width
        track.strands[d].read(count, silent and further)
        if count and further and not silent:
            track.strands[d + 1].wait(waits, count)
    return ended
