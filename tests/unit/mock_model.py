"""A target without weights whose text is a hash of what was really written into its slots, and drafters that know it.

Every wrong slot, position, block table, mask, chunk or moved slot changes the text or trips an assertion.
"""

from __future__ import annotations

import random
from hashlib import blake2b

import torch
from torch import Tensor

from paceline.batch import ForwardBatch
from paceline.cache.blocks import BlockAllocator
from paceline.drafters.base import Deeper, Seen
from paceline.engine.admit import Limits
from paceline.engine.engine import Engine
from paceline.engine.scheduler import Scheduler
from paceline.request import Request, SamplingParams
from paceline.sampling import Sampler
from paceline.spec.proposal import Proposal, Verdict
from paceline.spec.verify import verify
from paceline.spec.width import FixedWidth

VOCAB, EOS = 7, 0


def state(prefix: list[int]) -> int:
    """The "hidden state" after a prefix."""
    return int.from_bytes(blake2b(bytes(prefix), digest_size=6).digest(), "big")


def next_token(prefix: list[int]) -> int:
    """EOS, token 0, is rarer than the others."""
    value = state(prefix) % (4 * (VOCAB - 1) + 1)
    return 0 if value == 0 else 1 + (value - 1) % (VOCAB - 1)


def plain_text(prompt: list[int], params: SamplingParams, max_model_len: int) -> tuple[list[int], str]:
    """The definition: one token after the other, without any engine."""
    out: list[int] = []
    while True:
        out.append(next_token(prompt + out))
        text = "".join(letter(token) for token in out)
        if out[-1] in params.stop_token_ids or (out[-1] == EOS and not params.ignore_eos):
            return out, "stop"
        if any(stop in text for stop in params.stop):
            return out, "stop"
        if len(out) == params.max_tokens or len(prompt) + len(out) == max_model_len:
            return out, "length"


def letter(token: int) -> str:
    """Token 0 is silent, 6 is two letters long."""
    return "" if token == 0 else "xy" if token == 6 else "abcdefgh"[token - 1]


class Letters:
    """A decoder."""

    def push(self, ids: list[int]) -> str:
        return "".join(map(letter, ids))

    def flush(self) -> str:
        return ""


class MockPool:
    """What each slot holds: the token and its position, or nothing."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[tuple[int, int] | None] = [None] * num_slots
        self.moved = 0

    def move(self, source: Tensor, target: Tensor) -> None:
        found = [self.slots[s] for s in source.tolist()]
        for slot, content in zip(target.tolist(), found, strict=True):
            self.slots[slot] = content
        self.moved += len(found)


class MockTarget:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.pool = MockPool(num_blocks * block_size)
        self.block_size = block_size
        self.largest_batch = 0

    def __call__(self, batch: ForwardBatch) -> Tensor:
        tokens, positions, slots = batch.tokens.tolist(), batch.positions.tolist(), batch.slots.tolist()
        assert len(tokens) == len(positions) == len(slots) == batch.starts[-1] > 0
        assert len(set(slots)) == len(slots), "two tokens of one pass share a slot"
        self.largest_batch = max(self.largest_batch, len(tokens))
        for token, position, slot in zip(tokens, positions, slots, strict=True):
            self.pool.slots[slot] = (token, position)
        hidden: list[int] = []
        masks = batch.tree.tolist() if batch.tree is not None else [-1] * len(tokens)
        for r, context in enumerate(batch.context):
            before = [self.read(batch.blocks[r], place, place) for place in range(context)]
            start = batch.starts[r]
            for row in range(start, batch.starts[r + 1]):
                seen = [j for j in range(row - start + 1) if masks[row] >> j & 1]
                own = [self.read(batch.blocks[r], context + j, context + d) for d, j in enumerate(seen)]
                assert seen[-1] == row - start
                hidden.append(state(before + own))
        return torch.tensor(hidden)[:, None]

    def read(self, blocks: list[int], place: int, position: int) -> int:
        content = self.pool.slots[blocks[place // self.block_size] * self.block_size + place % self.block_size]
        assert content is not None and content[1] == position, f"place {place}: {content}, expected position {position}"
        return content[0]

    def logits(self, hidden: Tensor) -> Tensor:
        out = torch.zeros(len(hidden), VOCAB)
        for row, value in enumerate(hidden.flatten().tolist()):
            value %= 4 * (VOCAB - 1) + 1
            out[row, 0 if value == 0 else 1 + (value - 1) % (VOCAB - 1)] = 1.0
        return out


class MockDrafter:
    """Right with probability `skill`; chains, or random trees; checks all that a drafter is promised."""

    name = "mock"

    def __init__(self, rng: random.Random, skill: float, trees: bool, lazy: bool) -> None:
        self.rng, self.skill, self.trees, self.lazy = rng, skill, trees, lazy
        self.max_tokens, self.suspects, self.quantization, self.pools = 16, None, None, ()
        self.known: dict[int, tuple[Request, int]] = {}  # row -> request, count of tokens observed

    def observe(self, seen: Seen) -> None:
        assert [len(piece) for piece in seen.states] == seen.count
        states = iter(torch.cat(seen.states).flatten().tolist())
        seen_rows = zip(seen.requests, seen.rows, seen.blocks, seen.first, seen.count, strict=True)
        for request, row, blocks, first, count in seen_rows:
            known = self.known.get(row)
            if known is None:
                assert first == request.prefix_hit_tokens or request.preemptions
            else:
                assert known[0] is request and known[1] == first, "a row was not forgotten, or tokens were skipped"
            assert count > 0 and blocks
            for place in range(first, first + count):
                assert next(states) == state(request.tokens[: place + 1]), "hidden state of another prefix"
            assert len(request.tokens) > first + count or request.lag == 1
            self.known[row] = (request, first + count)

    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        for request in requests:
            assert self.known[request.row] == (request, len(request.tokens) - 1)
        if self.trees and requests:
            return self.grow(requests, widths)
        return Proposal([self.chain(r, w) for r, w in zip(requests, widths, strict=True)])

    def chain(self, request: Request, width: int) -> list[int]:
        out: list[int] = []
        for _ in range(self.rng.randint(0, width) if self.lazy else width):
            out.append(self.guess(request.tokens + out))
        return [request.tokens[-1], *out]

    def grow(self, requests: list[Request], widths: list[int]) -> Proposal:
        tokens, parents = [[request.tokens[-1]] for request in requests], [[-1] for _ in requests]
        for r, (request, width) in enumerate(zip(requests, widths, strict=True)):
            paths = [request.tokens]
            for node in range(1, width + 1):
                parent = self.rng.randint(max(0, node - 3), node - 1)
                tokens[r].append(self.guess(paths[parent]))
                parents[r].append(parent)
                paths.append([*paths[parent], tokens[r][node]])
        return Proposal(tokens, parents)

    def guess(self, prefix: list[int]) -> int:
        return next_token(prefix) if self.rng.random() < self.skill else self.rng.randrange(VOCAB)

    def forget(self, row: int) -> None:
        del self.known[row]


def make_engine(
    drafter: MockDrafter,
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 32,
    max_model_len: int = 48,
    prefix_caching: bool = True,
    k: int = 3,
) -> Engine:
    scheduler = Scheduler(
        BlockAllocator(num_blocks, block_size, prefix_caching),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        policy=FixedWidth(k),
    )
    sampler = Sampler([EOS])

    def check(proposal: Proposal, logits: Tensor, requests: list[Request]) -> Verdict:
        return verify(proposal, logits, requests, sampler)

    limits = Limits(max_model_len=max_model_len, vocab_size=VOCAB, max_speculative_tokens=k)
    return Engine(MockTarget(num_blocks, block_size), drafter, scheduler, check, limits, eos_token_ids=[EOS])
