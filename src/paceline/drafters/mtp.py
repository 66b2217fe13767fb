"""The model's own multi-token-prediction modules as drafter, with a draft cache that is exact.

In slot coordinates the chain of modules has one rule: depth d's entry at slot s is made from depth d-1's output at slot
s-1 (depth 0: the target's hidden state) and from token s; its rotary position is s - d. So a slot depends on tokens up
to s only, the target's block table and prefix hashes hold for the draft cache too, and one pass a depth does
everything: it absorbs all newly accepted tokens and drafts the next one.

    slot         a .. b        b+1      b+2          a..b: committed tokens not absorbed yet; b is the pending token
    depth 1      t_a .. t_b                          its last row drafts x1
    depth 2      t_a .. t_b    x1                    drafts x2
    depth 3      t_a .. t_b    x1       x2           drafts x3

What lies beyond b is a guess; the next pass overwrites it. Beyond the last module, the last one is fed its own output.
Each depth's output at slot b is carried to the next pass;
for the last slot of each block it is kept beside the block, so that a prefix hit can go on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from paceline.batch import Row, make_batch
from paceline.cache.attend import PagedAttend
from paceline.cache.pool import Pool
from paceline.config import MAX_SPECULATIVE_TOKENS, EngineConfig
from paceline.drafters.base import Deeper, Seen
from paceline.errors import UserError
from paceline.models.mtp import MTP, MTPDepth
from paceline.request import Request
from paceline.sampling import Sampler
from paceline.spec.proposal import Proposal


@dataclass
class Span:
    """Slots start..start+len(tokens)-1 of one request, to be absorbed; then `width` drafts. `features`: rows of depth
    0's outputs at slots start-1..; `row`: the request's row in the carried states."""

    request: Request
    row: int
    start: int
    tokens: list[int]
    blocks: list[int]
    features: Tensor | None
    width: int = 0
    drafts: list[int] = field(default_factory=list)

    @property
    def left(self) -> bool:
        """Whether the request finished, was aborted or preempted since, and gave its blocks back."""
        return self.request.blocks is not self.blocks


class MTPDrafter:
    """Drafts with `mtp` on its own pool, which shares the target's slots and block tables."""

    name = "mtp"

    def __init__(self, mtp: MTP, pool: Pool, sampler: Sampler, max_rows: int, source: str) -> None:
        """source: where the modules come from, for the user to look at when they guess wrong."""
        self.mtp, self.pool, self.sampler = mtp, pool, sampler
        self.suspects = (
            f"the MTP modules of {source}: eh_proj with its halves in the other order, a missing or foreign embedding, "
            "FP8 scales that were not applied, or modules of another model."
        )
        self.max_tokens = MAX_SPECULATIVE_TOKENS
        self.depths = [cast(MTPDepth, depth) for depth in mtp.depths]
        depths, hidden = len(self.depths), self.depths[0].norm.weight.shape[0]
        like = pool.k[0]
        # outputs of depth 0..D (0: the target) at the last absorbed slot of each row, and at the last slot of each
        # block
        self.carried = like.new_zeros(depths + 1, max_rows, hidden)
        self.kept = like.new_zeros(depths + 1, pool.num_blocks, hidden)
        self.reached: dict[int, int] = {}  # row -> first slot not absorbed yet, for rows that this drafter follows
        self.waiting: dict[int, Span] = {}  # row -> what was observed since the last `propose`

    @classmethod
    def build(cls, config: EngineConfig, target_runner: Any) -> MTPDrafter:
        """Raises `UserError` when checkpoint or draft model has no MTP modules, fewer than asked for, or lacks their
        tensors."""
        wanted = config.mtp_modules or config.most_speculative_tokens or 1
        mtp = target_runner.load_mtp(wanted, config.draft_model, config.draft_quantization)
        available = len(mtp.depths)
        if config.mtp_modules is not None and config.mtp_modules > available:
            raise UserError(f"mtp_modules is {config.mtp_modules}, but the model has {available}; ask for no more.")
        target = target_runner.pool
        pool = Pool(mtp.cache, target.num_blocks, target.block_size, target.k[0].dtype, target.k[0].device)
        return cls(
            mtp,
            pool,
            Sampler(target_runner.model.config.eos_token_ids),
            config.max_num_seqs,
            config.draft_model or str(target_runner.path),
        )

    def observe(self, seen: Seen) -> None:
        offset = 0
        for request, row, first, count, blocks in zip(
            seen.requests, seen.rows, seen.first, seen.count, seen.blocks, strict=True
        ):
            features = seen.hidden[offset : offset + count]
            offset += count
            start = first + 1
            if first > 0 and self.reached.get(row) != start:  # a prefix hit: slot `first` has no entry of this request
                block = blocks[(first - 1) // self.pool.block_size]
                self.carried[:, row] = self.kept[:, block]
                features = torch.cat((self.kept[:1, block], features))
                start = first
            tokens = request.tokens[start : first + count + 1]
            self.reached[row] = start + len(tokens)
            self.waiting[row] = Span(request, row, start, tokens, blocks, features[: len(tokens)])

    def forget(self, row: int) -> None:
        self.reached.pop(row, None)

    @torch.inference_mode()
    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        spans = self.waiting
        self.waiting = {}
        for request, width in zip(requests, widths, strict=True):
            span = spans.get(request.row)
            if span is None or span.request is not request:
                span = Span(request, request.row, len(request.tokens), [], request.blocks, None)
                spans[request.row] = span
            span.width, span.blocks = width, request.blocks
        for span in spans.values():
            self.fit(span)
        # Blocks of those that left may be others' by now: what is finished in them for prefix hits comes first.
        for left in (True, False):
            self.run([span for span in spans.values() if span.left is left])
        return Proposal.of_chains([[r.tokens[-1], *spans[r.row].drafts] for r in requests])

    def fit(self, span: Span) -> None:
        """Drops what has no slot: the pending token of a request that left before it got the next block. The state
        before it is the last of a block."""
        room = len(span.blocks) * self.pool.block_size - span.start
        if span.features is not None and len(span.tokens) > room:
            self.kept[0, span.blocks[-1]] = span.features[room]
            span.tokens, span.features = span.tokens[:room], span.features[:room]

    def run(self, spans: list[Span]) -> None:
        """Absorbs and drafts: one pass a module, then the last module again for drafts beyond it."""
        if not any(span.tokens or span.width for span in spans):
            return
        flat = torch.cat([s.features for s in spans if s.features is not None] or [self.carried[0, :0]])
        counts = [len(s.tokens) for s in spans]
        self.keep(0, spans, flat, counts, shift=-1)
        features = flat
        for d in range(1, len(self.depths) + 1):
            features = self.depth(d, spans, features)
        for _ in range(len(self.depths), max(s.width for s in spans)):
            features = self.again(spans, features)

    def depth(self, d: int, spans: list[Span], features: Tensor) -> Tensor:
        """Pass of module d over every span; features: one row for each of its rows. Returns those of the next pass."""
        rows = [Row(s.tokens + s.drafts[: d - 1] if s.width >= d else s.tokens, s.start, s.blocks) for s in spans]
        counts = [len(row.tokens) for row in rows]
        out = self.forward(d, rows, features)
        self.keep(d, spans, out, counts, shift=0)
        source = torch.cat((self.carried[d, [s.row for s in spans]], out))
        ends, following, offset = [], [], len(spans)
        for i, (span, count) in enumerate(zip(spans, counts, strict=True)):
            sequence = [i, *range(offset, offset + count)]  # the carried output, then this pass's: slots start-1..
            ends.append(sequence[-1])
            last = d == len(self.depths)
            following += sequence[-1:] if last else sequence if span.width > d else sequence[: len(span.tokens)]
            offset += count
        self.draft(d, spans, source[ends])
        self.carry(d, spans, source)
        return source[following]

    def again(self, spans: list[Span], features: Tensor) -> Tensor:
        """The last module on its own output: one more row for each span that wants one more draft."""
        d = len(self.depths)
        step = max(len(s.drafts) for s in spans)
        live = [i for i, s in enumerate(spans) if s.width > step]
        rows = [
            Row(spans[i].drafts[step - 1 : step], spans[i].start + len(spans[i].tokens) + step - 1, spans[i].blocks)
            for i in live
        ]
        out = self.forward(d, rows, features if len(live) == len(features) else features[live])
        chosen = [spans[i] for i in live]
        self.draft(step + 1, chosen, out)
        features = features.clone()
        features[live] = out
        return features

    def forward(self, d: int, rows: list[Row], features: Tensor) -> Tensor:
        rows = [row for row in rows if row.tokens]
        if not rows:
            return features[:0]
        batch = make_batch(rows, self.pool.block_size, first=d, device=features.device)
        out: Tensor = self.depths[d - 1](batch.tokens, batch.positions, PagedAttend(self.pool, batch), features)
        return out

    def draft(self, d: int, spans: list[Span], outputs: Tensor) -> None:
        """Draft number d of each span that wants it, from outputs [len(spans), hidden]."""
        wanted = [i for i, s in enumerate(spans) if s.width >= d]
        if not wanted:
            return
        module = self.depths[min(d, len(self.depths)) - 1]
        logits = module.logits(outputs if len(wanted) == len(spans) else outputs[wanted])
        chosen = [spans[i] for i in wanted]
        tokens = self.sampler.choose(logits, [s.request for s in chosen], [s.drafts for s in chosen])
        for span, token in zip(chosen, tokens.tolist(), strict=True):
            span.drafts.append(token)

    def carry(self, d: int, spans: list[Span], source: Tensor) -> None:
        """Depth d's output at the last committed slot of each span; `source` as in `depth`."""
        offset, index = len(spans), []
        for i, span in enumerate(spans):
            index.append(offset + len(span.tokens) - 1 if span.tokens else i)
            offset += len(span.tokens) + (d - 1 if span.width >= d else 0)
        self.carried[d, [s.row for s in spans]] = source[index]

    def keep(self, d: int, spans: list[Span], outputs: Tensor, counts: list[int], shift: int) -> None:
        """Depth d's outputs at the last slots of blocks. Row i of a span lies at slot start + i + shift."""
        size, rows, blocks, offset = self.pool.block_size, [], [], 0
        for span, count in zip(spans, counts, strict=True):
            begin, end = span.start + shift, span.start + shift + len(span.tokens)
            for slot in range(begin + (-begin - 1) % size, end, size):
                rows.append(offset + slot - begin)
                blocks.append(span.blocks[slot // size])
            offset += count
        if rows:
            self.kept[d, blocks] = outputs[rows]
