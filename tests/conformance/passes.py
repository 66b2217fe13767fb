"""Tokens, block tables and passes that look like serving, and what counts as equal."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from tiny_models import VOCAB
from torch import Tensor

from paceline.batch import ForwardBatch, tables_of
from paceline.cache.dense import DenseAttend
from paceline.models.decoder import DecoderModel

TOLERANCE = 1e-4
BLOCK = 4


def tokens_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def dense_logits(model: DecoderModel, tokens: Tensor) -> Tensor:
    attend = DenseAttend(torch.zeros(1, len(tokens), dtype=torch.int64))
    return model.logits(model(tokens, torch.arange(len(tokens)), attend))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.3, "a reference this quiet would hide errors"
    difference = (ours - theirs).abs().max().item()
    assert difference < TOLERANCE, f"logits differ by {difference:.2e}"


def batch_of(
    texts: list[Tensor], spans: list[tuple[int, int]], tables: list[list[int]], first: int = 0
) -> ForwardBatch:
    """The places begin..end-1 of each text that has any, in one pass; `first` as in ForwardBatch."""
    live = [r for r, (begin, end) in enumerate(spans) if end > begin]
    places = [list(range(*spans[r])) for r in live]
    starts = [0]
    for row in places:
        starts.append(starts[-1] + len(row))
    return ForwardBatch(
        tokens=torch.cat([texts[r][spans[r][0] : spans[r][1]] for r in live]),
        positions=torch.tensor([p - first for row in places for p in row]),
        slots=torch.tensor(
            [tables[r][p // BLOCK] * BLOCK + p % BLOCK for r, row in zip(live, places, strict=True) for p in row]
        ),
        starts=starts,
        context=[spans[r][0] for r in live],
        blocks=[tables[r] for r in live],
        take=torch.arange(starts[-1]),
        first=[first] * len(live),
        tables=torch.tensor(
            tables_of(starts, [spans[r][0] for r in live], [first] * len(live), [tables[r] for r in live])
        ),
    )


def chunks_of(lengths: list[int], rng: random.Random, begin: int = 0) -> Iterator[list[tuple[int, int]]]:
    """Random passes over several texts: prompt chunks, single tokens, several tokens, sometimes nothing."""
    done = [begin] * len(lengths)
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        ends = [min(n, d + rng.choice((0, 1, 1, 2, 4, 17))) for d, n in zip(done, lengths, strict=True)]
        if ends != done:
            yield list(zip(done, ends, strict=True))
        done = ends


def tables_for(lengths: list[int], rng: random.Random) -> tuple[list[list[int]], int]:
    """Block tables that interleave and jump, and the number of blocks in all."""
    counts = [-(-n // BLOCK) for n in lengths]
    blocks = list(range(sum(counts) + 3))
    rng.shuffle(blocks)
    return [[blocks.pop() for _ in range(count)] for count in counts], sum(counts) + 3
