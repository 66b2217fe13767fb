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

A module reads only for who drafts with it. For the others its features wait (see `spec.strands`), so a request that
does not draft costs nothing, and one that drafts a single token costs one module. What the modules see is exact all the
same: the cache from scratch over the slots that they see. For the last slot of each block, the outputs are kept beside
the block, with where their modules began to see, so that a prefix hit can go on from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from paceline.batch import Row, make_batch
from paceline.cache.attend import PagedAttend, Wanted
from paceline.cache.pool import Pool
from paceline.config import MAX_SPECULATIVE_TOKENS, EngineConfig
from paceline.drafters.base import Deeper, Leads, Seen
from paceline.errors import UserError
from paceline.inference import inference
from paceline.kernels.chain import pack_chain
from paceline.kernels.rounds import Outcome
from paceline.models.mtp import MTP, MTPDepth
from paceline.request import Request
from paceline.sampling import Sampler
from paceline.spec.at_once import Reading, as_asked, carried, joined, note
from paceline.spec.constrained import choose, choose_and_rate
from paceline.spec.proposal import Proposal
from paceline.spec.strands import LONG, MOST, WINDOW, Part, Strand, Track
from paceline.speculative_config import AUTO

# A module that few draft with is not worth reading prompts: where of late fewer than one request in four drafted so
# deep, it begins with what has waited when somebody does. Of late: each step counts so much, so a trial is too short.
_FOLLOWED, _LATE = 0.25, 1 / 16
_FEW, _ASLEEP = 8, 32  # steps in which fewer than one in so many drafted, after which nothing is followed any more
_AT_ONCE = 4 * LONG  # rows, of all modules, whose outputs are one tensor as long as somebody keeps one of them
_RECENT = 16  # steps whose features are kept even so: with none before them, first drafts are right half as often


class MTPDrafter:
    """Drafts with `mtp` on its own pool, which shares the target's slots and block tables."""

    name = "mtp"

    def __init__(
        self,
        mtp: MTP,
        pool: Pool,
        sampler: Sampler,
        source: str,
        prefix_caching: bool = True,
        adaptive: bool = False,
        window: int = 0,
    ) -> None:
        """source: where the modules come from, for the user to look at when they guess wrong. prefix_caching: whether
        blocks may be found again, so that what goes on behind them is kept. adaptive: whether it turns out how many
        drafts are wanted. window: slots that a row sees at most where modules are compiled; 0: all."""
        self.mtp, self.pool, self.sampler, self.prefix_caching = mtp, pool, sampler, prefix_caching
        self.suspects = (
            f"the MTP modules of {source}: eh_proj with its halves in the other order, a missing or foreign embedding, "
            "FP8 scales that were not applied, or modules of another model."
        )
        self.pools, self.max_tokens, self.quantization = (pool,), MAX_SPECULATIVE_TOKENS, mtp.quantization
        self.modules = [cast(MTPDepth, depth) for depth in mtp.depths]
        chained = [module.chained(pool.memory[module.index]) for module in self.modules] if pool.spec.shared else [None]
        self.chain = pack_chain(chained, pool.block_size, window)
        self.at_once, self.window = (True, window) if self.chain is not None else (False, 0)
        depths, hidden = len(self.modules), self.modules[0].norm.weight.shape[0]
        # Outputs of depth 0..D-1 (0: the target) at the last slot of each block; and whether module d = 1..D read that
        # slot: then its `Track.firsts`.
        self.kept = pool.k[0].new_zeros(depths, pool.num_blocks, hidden)
        self.known: list[list[tuple[int, ...] | None]] = [[None] * pool.num_blocks for _ in range(depths)]
        self.tracks: dict[int, Track] = {}  # by row
        # By module, the share of requests that drafted with it of late; of deeper ones nothing is expected at first.
        self.use = [1.0] + [float(not adaptive)] * (depths - 1)
        self.quiet, self.asleep = 0, False  # steps in a row with few drafts; whether nothing is followed
        self.rounds = 0  # of steps of several, since drafts were last proposed
        self.recent: deque[Seen] = deque(maxlen=_RECENT)  # what was seen meanwhile

    @classmethod
    def build(cls, config: EngineConfig, target_runner: Any) -> MTPDrafter:
        """Raises `UserError` when checkpoint or draft model has no MTP modules, too few, or lacks their tensors."""
        wanted = config.mtp_modules or config.most_speculative_tokens or 1
        mtp = target_runner.load_mtp(wanted, config.draft_model, config.draft_quantization)
        available = len(mtp.depths)
        if config.mtp_modules is not None and config.mtp_modules > available:
            raise UserError(f"mtp_modules is {config.mtp_modules}, but the model has {available}; ask for no more.")
        target = target_runner.pool
        pool = Pool(mtp.cache, target.num_blocks, target.block_size, target.k[0].dtype, target.k[0].device)
        about = target_runner.model.config
        sampler, source = Sampler(about.eos_token_ids), config.draft_model or str(target_runner.path)
        adaptive, window = config.num_speculative_tokens == AUTO, config.window_of(about.num_hidden_layers)
        drafter = cls(mtp, pool, sampler, source, config.enable_prefix_caching, adaptive, window)
        config.check_window(compiled=drafter.chain is not None)
        return drafter

    # -- what the target read

    def observe(self, seen: Seen) -> None:
        self.rounds += seen.rounds
        long = sum(seen.count) > LONG
        if self.asleep:
            if long:
                self.recent.clear()
            self.recent.append(seen)
            return
        states = seen.states
        for request, row, first, features, blocks in zip(
            seen.requests, seen.rows, seen.first, states, seen.blocks, strict=True
        ):
            track = self.tracks.get(row)
            if track is None:
                track = self.tracks[row] = self.begin(request, blocks, first)
            track.strands[0].wait(features.clone() if long and features.shape[0] <= WINDOW else features)
        if self.prefix_caching:
            self.mark(seen, states)

    def mark(self, seen: Seen, states: list[Tensor]) -> None:
        """What the target made of the last slots of blocks, beside the blocks."""
        size, last, ended = self.pool.block_size, [], []
        for r, (first, count) in enumerate(zip(seen.first, seen.count, strict=True)):
            for index in range(first // size, (first + count) // size):
                last.append(states[r][(index + 1) * size - 1 - first])
                ended.append(seen.blocks[r][index])
            if (first + count - 1) // size > (first - 1) // size:
                self.claim(self.tracks[seen.rows[r]], first, first + count)
        if last:
            self.kept[0, ended] = torch.stack(last)

    def begin(self, request: Request, blocks: list[int], first: int) -> Track:
        """A request whose first `first` tokens are a prefix hit: each module that read them all goes on behind them."""
        track = Track(request, blocks, [Strand() for _ in self.modules], self.window)
        track.begin(1, first + 1)
        last = first // self.pool.block_size - 1
        for d, strand in enumerate(track.strands if first else (), 1):
            known = self.known[d - 1]
            mine = known[blocks[last]]
            if mine is None or mine[:-1] != track.firsts(d - 1):
                break
            if any(known[block] != mine for block in blocks[mine[-1] // self.pool.block_size : last]):
                break
            track.begin(d + 1, first + 1)
            strand.first, strand.start = mine[-1], first
            strand.wait(self.kept[d - 1, blocks[last]][None].clone())
        return track

    def claim(self, track: Track, start: int, end: int) -> None:
        """Blocks whose first slots are among these are the request's own: what was known of them is of another text."""
        size = self.pool.block_size
        for index in range(-(-start // size), -(-end // size)):
            for strand, known in zip(track.strands, self.known, strict=True):
                if strand.start < (index + 1) * size:
                    known[track.blocks[index]] = None

    def forget(self, row: int) -> None:
        self.tracks.pop(row, None)

    # -- drafting

    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        if self.sleeps(requests, widths):
            return Proposal([[request.tokens[-1]] for request in requests])
        return self.awake(requests, widths, deeper)

    @inference
    def awake(self, requests: list[Request], widths: list[int], deeper: Deeper | None) -> Proposal:
        left = [track for track in self.tracks.values() if track.left]
        ready = [self.tracks[request.row] for request in requests]
        for track, width in zip(ready, widths, strict=True):
            track.plan(width, self.is_last(width))
        reading = self.reading(ready) if len(left) + len(ready) < len(self.tracks) else []
        ending = self.ending(left, ready) if left and self.prefix_caching else []
        if reading or ending or any(widths):
            self.draft(ready, reading + ending, deeper)
        return Proposal([[track.request.tokens[-1], *track.drafts] for track in ready])

    def sleeps(self, requests: list[Request], widths: list[int]) -> bool:
        """Whether there are no drafts in this step: hardly anybody has wanted any lately, so nothing is followed. Who
        is back begins with the last few steps' tokens, as behind a prefix hit that nobody knows."""
        steps, self.rounds = 1 + self.rounds, 0
        if self.asleep and not any(widths):
            return True
        if widths:
            late = 1 - (1 - _LATE) ** steps
            for d, use in enumerate(self.use):
                self.use[d] += late * (sum(width > d for width in widths) / len(widths) - use)
            few = _FEW * sum(width > 0 for width in widths) < len(widths)
            few = few and not any(request.num_speculative_tokens for request in requests)
            self.quiet = self.quiet + steps if few else 0
        before, self.asleep = self.asleep, self.quiet >= _ASLEEP
        if self.asleep and not before:
            self.tracks.clear()
            self.known = [[None] * len(known) for known in self.known]
        if before and not self.asleep:
            while self.recent:
                self.observe(self.recent.popleft().of_those_still_there())
            self.rounds = 0
        return self.asleep or any(request.row not in self.tracks for request in requests)

    def reading(self, ready: list[Track]) -> list[Track]:
        """Those that read a prompt and, as it seems, will draft; the others rest."""
        here, found = set(ready), []
        for track in self.tracks.values():
            if track in here or track.left:
                continue
            followed = 0 if track.request.num_speculative_tokens == 0 else self.followed
            track.plan(followed, self.is_last(followed))
            track.goes_on = False
            if followed:
                found.append(track)
        return found

    @property
    def followed(self) -> int:
        """How many modules read prompts."""
        return next((d for d, use in enumerate(self.use) if use < _FOLLOWED), len(self.use))

    def is_last(self, depth: int) -> bool:
        """Whether hardly anybody drafts deeper than that, or nobody can."""
        return depth >= len(self.use) or self.use[depth] < _FOLLOWED

    def ending(self, left: list[Track], ready: list[Track]) -> list[Track]:
        """Those that left and still have to read for prefix hits, each with as many modules as kept up. Where one of
        their blocks is another's by now, they read at once, before it is written."""
        for track in left:
            kept_up = [strand.start > strand.first and strand.waiting <= MOST for strand in track.strands]
            behind = [False, *(strand.passed > 0 for strand in track.strands)]
            track.width = [ok and not late for ok, late in zip([*kept_up, False], behind, strict=True)].index(False)
            track.goes_on, track.silent = False, True
        found = [track for track in left if track.width]
        theirs = {block for track in found for block in track.blocks}
        if any(not theirs.isdisjoint(track.blocks) for track in ready):
            self.draft([], found, None)
            return []
        return found

    def draft(self, ready: list[Track], reading: list[Track], deeper: Deeper | None) -> None:
        """One pass a module; then the last module again for drafts beyond it. Or all in one call, where that serves."""
        if deeper is None and not reading and self.draft_at_once([track for track in ready if track.goes_on]):
            return
        live: list[Track] = []
        for d in range(1, len(self.modules) + 1):
            parts = []
            for track in ready:
                if track.goes_on:
                    parts.append(Part.drafting(track, d))
                elif track.width >= d and track.strands[d - 1].waiting > MOST:
                    parts.append(Part.absorbing(track, d, len(track.request.tokens)))
            parts += [Part.absorbing(track, d, self.readable(track)) for track in reading if track.width >= d]
            live, states = self.run(d, parts, deeper)
        depth = len(self.modules)
        while live:
            rows = [Row(t.drafts[-1:], len(t.request.tokens) + depth - 1, t.blocks, t.strands[-1].first) for t in live]
            depth += 1
            _, states = self.forward(len(self.modules), rows, states, list(range(len(live))))
            live, states = self.choose(depth, live, states, deeper)

    def draft_at_once(self, tracks: list[Track]) -> bool:
        """As `draft`, by compiled code from the first module to the last, and then what `run` notes of each module.
        False where that does not serve: only choices from the logits as they are, and few rows, for all outputs are
        one tensor."""
        tracks.sort(key=lambda track: -track.width)
        if self.chain is None or any(track.request.params.heat is None for track in tracks):
            return False
        asked = [as_asked(track) for track in tracks]
        counts = [a.counts for a in asked]
        if sum(map(sum, counts)) > _AT_ONCE or not all(some[0] > 0 for some in counts):
            return False
        readings = [
            Reading(track, d, 1 if track.silent and d + 1 == len(some) else some[d], len(track.request.tokens))
            for d in range(len(counts[0]))
            for track, some in zip(tracks, counts, strict=True)
            if len(some) > d
        ]
        outputs, drafts = self.chain(asked, counts, joined(carried(tracks)))
        self.keep(note(readings, outputs, self.pool.block_size), outputs)
        for r, track in enumerate(tracks):
            track.drafts, track.goes_on = drafts[r :: len(tracks)][: track.width], False
        return True

    def leads(self, requests: list[Request], widths: list[int]) -> Leads | None:
        tracks = [track for request in requests if (track := self.tracks.get(request.row)) is not None]
        if self.chain is None or self.asleep or not len(tracks) == len(requests) == len(self.tracks):
            return None
        for track, width in zip(tracks, widths, strict=True):
            track.plan(width, self.is_last(width))
        tracks = sorted((track for track in tracks if track.width), key=lambda track: -track.width)
        asked = [as_asked(track) for track in tracks]
        counts = [a.counts for a in asked]
        committed = [rows - d for some in counts for d, rows in enumerate(some)]
        if sum(committed) > _AT_ONCE or min(committed) < 1:
            return None
        return Leads([track.request for track in tracks], asked, counts, joined(carried(tracks)))

    def follow(self, before: Seen, leads: Leads, outcome: Outcome) -> None:
        if any(before.count):
            self.observe(before)
        tracks = [self.tracks[row] for row in before.rows[: len(leads.requests)]]
        lengths = [first + count + 1 for first, count in zip(before.first, before.count, strict=True)]
        readings = [
            Reading(track, d, rows, length)
            for d, sizes in enumerate(outcome.sizes)
            for track, rows, length in zip(tracks, sizes, lengths, strict=False)
            if track.width > d
        ]
        self.keep(note(readings, outcome.outputs, self.pool.block_size), outcome.outputs)

    def readable(self, track: Track) -> int:
        """The committed tokens that have a slot."""
        return min(len(track.request.tokens), len(track.blocks) * self.pool.block_size)

    def run(self, d: int, parts: list[Part], deeper: Deeper | None = None) -> tuple[list[Track], Tensor]:
        """One pass of module d. Who gets a further draft, and the outputs that it is made from."""
        parts = [part for part in parts if part.tokens]
        if not parts:
            return [], self.kept[0, :0]
        features = joined([piece for part in parts for piece in part.take()])
        rows = [Row(p.tokens, p.start, p.track.blocks, p.track.strands[d - 1].first) for p in parts]
        counts = [part.wanted for part in parts]
        drafting = [(part.track, end - 1) for part, end in zip(parts, accumulate(counts), strict=True) if part.drafts]
        out, ends = self.forward(d, rows, features, [end for _, end in drafting], counts)
        found = self.choose(d, [track for track, _ in drafting], ends, deeper)
        self.keep(zip(parts, accumulate(counts, initial=0), strict=False), out)
        if d < len(self.modules):
            long = out.shape[0] > LONG
            for part, outputs in zip(parts, out.split(counts), strict=True):
                if not part.silent:
                    part.pass_on(outputs.clone() if long and outputs.shape[0] <= WINDOW else outputs)
        return found

    def forward(
        self, d: int, rows: list[Row], features: Tensor, take: list[int], counts: list[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """A pass of module d: all outputs that are wanted, and of these those numbered `take`. counts: how many are
        wanted of each request, the last ones; None: all."""
        batch = make_batch(rows, self.pool.block_size, first=d, take=take, device=features.device)
        wanted = None if counts is None else Wanted.of(rows, counts, self.pool.block_size, d, features.device)
        attend = PagedAttend(self.pool, batch, wanted, self.window)
        out: Tensor = self.modules[d - 1](batch.tokens, batch.positions, attend, features)
        if wanted is not None and out.shape[0] > wanted.rows.shape[0]:
            out = out.index_select(0, wanted.rows)
        return out, out if len(take) == out.shape[0] else out.index_select(0, batch.take)

    def choose(
        self, depth: int, tracks: list[Track], states: Tensor, deeper: Deeper | None
    ) -> tuple[list[Track], Tensor]:
        """Draft number `depth` of each, from its state; then who goes on, and their states."""
        if not tracks:
            return [], states
        logits = self.modules[min(depth, len(self.modules)) - 1].logits(states)
        requests, paths = [track.request for track in tracks], [track.drafts for track in tracks]
        if deeper is None:
            tokens, more = choose(self.sampler, logits, requests, paths), [True] * len(tracks)
        else:
            tokens, confidences = choose_and_rate(self.sampler, logits, requests, paths)
            more = deeper(depth, requests, confidences)
        for track, token, wanted in zip(tracks, tokens, more, strict=True):
            track.drafts.append(token)
            track.goes_on = wanted and track.width > depth
        going = [i for i, track in enumerate(tracks) if track.goes_on]
        if len(going) == len(tracks) or not going:
            return tracks if going else [], states
        return [tracks[i] for i in going], states[going]

    def keep(self, parts: Iterable[tuple[Part, int]], outputs: Tensor) -> None:
        """What modules made of the last slots of blocks, beside the blocks. parts: with the rows of `outputs` where
        they begin. Where no block is found again, nothing is kept."""
        depths, ended, rows = [], [], []
        for part, first in parts if self.prefix_caching else ():
            for row, block in part.ended_blocks(self.pool.block_size):
                self.known[part.depth - 1][block] = part.track.firsts(part.depth)
                if part.depth < len(self.kept) and not part.silent:
                    depths.append(part.depth)
                    ended.append(block)
                    rows.append(first + row)
        if rows:
            self.kept[depths, ended] = outputs[rows]
