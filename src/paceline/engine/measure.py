"""What steps cost on this machine: the engine itself runs random tokens at a staircase of batch sizes and widths.

Nothing is modelled: what is timed is the step that will serve, with its scheduling, its drafter and its verification.
Other processes only ever add time, so the quickest of some steps counts, and no more work is taken to be quicker.
Random tokens spread over the experts of a mixture as varied requests do, so that more rows touch more experts here too.
"""

from __future__ import annotations

import random
from itertools import accumulate, count, pairwise
from time import perf_counter
from typing import Any

from paceline.drafters.base import Deeper, Drafter, Seen
from paceline.engine.engine import Engine
from paceline.engine.stats import EngineStats
from paceline.request import Request, SamplingParams
from paceline.spec.cost import CostTable, curve
from paceline.spec.proposal import Proposal
from paceline.spec.width import StepFacts

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 512, 768, 1024)
STEPS, ROUNDS, PROMPT, LONG = 3, 3, 12, 512  # timed steps a point in each round; tokens of prompts
SECONDS = 6.0  # after so long the larger batches stay as they are estimated


class Script:
    """A width policy that spreads `extra` drafts over the batch, and remembers what the step told."""

    adaptive = True

    def __init__(self, most: int) -> None:
        self.most, self.extra = most, 0
        self.given: list[int] = []
        self.facts: StepFacts | None = None

    def widths(self, ready: list[Request]) -> list[int]:
        each, more = divmod(self.extra, max(len(ready), 1))
        self.given = [min(self.most, each + (r < more)) for r in range(len(ready))]
        return list(self.given)

    def deeper(self, depth: int, requests: list[Request], confidences: list[float]) -> list[bool]:
        return [True] * len(requests)

    def cut(self, requests: list[Request], drafted: list[int]) -> list[int]:
        return drafted

    def learn(self, facts: StepFacts) -> None:
        self.facts = facts

    def as_dict(self) -> dict[str, Any]:
        return {}


class Filling:
    """A drafter whose proposals are filled up to their width with random tokens: rows cost the same, guessed or not."""

    def __init__(self, drafter: Drafter, vocab_size: int) -> None:
        self._drafter, self._vocab_size, self._random = drafter, vocab_size, random.Random(0)
        self.name, self.max_tokens, self.suspects = drafter.name, drafter.max_tokens, None

    def observe(self, seen: Seen) -> None:
        self._drafter.observe(seen)

    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        proposal = self._drafter.propose(requests, widths, deeper)
        if all(made == width + 1 for made, width in zip(proposal.counts, widths, strict=True)):
            return proposal
        chains = [row[:made] for row, made in zip(proposal.tokens.tolist(), proposal.counts, strict=True)]
        for chain, width in zip(chains, widths, strict=True):
            chain += [self._random.randrange(self._vocab_size) for _ in range(width + 1 - len(chain))]
        return Proposal.of_chains(chains)

    def forget(self, row: int) -> None:
        self._drafter.forget(row)


class Measuring:
    """Runs an engine that nobody uses yet; `table` leaves it as it was."""

    def __init__(self, engine: Engine, most: int, max_num_seqs: int) -> None:
        self.engine, self.script, self.max_num_seqs = engine, Script(most), max_num_seqs
        self._random, self._ids = random.Random(0), count()
        self._drafting: dict[int, dict[int, list[float]]] = {depth: {} for depth in range(most)}

    def table(self, seconds: float = SECONDS) -> CostTable:
        """The measured costs. Takes about so many seconds at most, one batch size more at worst."""
        engine = self.engine
        policy, drafter, allocator = engine.policy.policy, engine.drafter, engine.scheduler.allocator
        caching, canary = allocator.prefix_caching, engine.canary.suspects
        engine.policy.policy, engine.drafter = self.script, Filling(drafter, engine.limits.vocab_size)
        allocator.prefix_caching, engine.canary.suspects = False, None
        try:
            return self._measure(perf_counter() + seconds)
        finally:
            self._clear()
            engine.step()  # the drafter forgets the last rows
            engine.policy.policy, engine.drafter, engine.stats = (
                policy,
                drafter,
                EngineStats(policy=engine.policy.as_dict),
            )
            engine.policy.seconds = 0.0
            allocator.prefix_caching, engine.canary.suspects = caching, canary

    def _measure(self, until: float) -> CostTable:
        self._fill(1, PROMPT)
        for _ in range(STEPS):  # the first steps load code and memory
            self._point(1, self.script.most)
        self._drafting = {depth: {} for depth in self._drafting}
        points = self._rounds(until)
        curves = {batch: rising(sorted(found.items())) for batch, found in sorted(points.items()) if 0 in found}
        curves = curves or {1: [(0, 1.0)]}  # no room for a step to measure: only ratios matter, and there are none
        middle = min(4, max(curves))
        per_context = self._context(middle, curves[middle][0][1]) if middle in points else 0.0
        batches = sorted(curves)
        for fewer, more in list(pairwise(batches))[::-1]:
            curves[fewer] = below(curves[fewer], curves[more])
        return CostTable(
            batches,
            [[extra for extra, _ in curves[batch]] for batch in batches],
            [[spent for _, spent in curves[batch]] for batch in batches],
            per_context,
            [self._points(depth) for depth in self._drafting],
        )

    def _rounds(self, until: float) -> dict[int, dict[int, float]]:
        """Batch -> further rows -> the least seconds of all rounds. A slow moment of the machine spoils one round."""
        found: dict[int, dict[int, float]] = {}
        for number in range(ROUNDS):
            for batch in self._batches():
                if perf_counter() > until and (number or found):
                    return found
                for extra in self._extras(batch):
                    if spent := self._point(batch, extra):
                        best = found.setdefault(batch, {})
                        best[extra] = min(spent, best.get(extra, spent))
        return found

    def _batches(self) -> list[int]:
        """The smallest, the largest, then those between."""
        inner = [batch for batch in BATCHES if 1 < batch < self.max_num_seqs]
        return list(dict.fromkeys((1, self.max_num_seqs, *inner)))

    def _extras(self, batch: int) -> list[int]:
        most = min(batch * self.script.most, max(4 * self.script.most, 3 * batch))  # more never pays in large batches
        return sorted({0, most, *(rows - batch for rows in ROWS if 0 < rows - batch < most)})

    def _point(self, batch: int, extra: int) -> float:
        """Seconds of a step without drafting; 0 where the engine has no room for so much."""
        self.script.extra, times = extra, []
        for _ in range(STEPS + 1):
            facts = self._step(batch)
            if facts is None or facts.rows != batch + extra:
                return 0.0
            times.append(facts.seconds)
            self._note_drafting(facts)
        return min(times[1:])

    def _step(self, batch: int) -> StepFacts | None:
        """One step of just so many decoding requests."""
        if not self._fill(batch, PROMPT):
            return None
        self.engine.step()
        return self.script.facts

    def _note_drafting(self, facts: StepFacts) -> None:
        for depth in self._drafting:
            n = sum(width > depth for width in self.script.given)
            if n and depth < len(facts.drafting):
                self._drafting[depth].setdefault(n, []).append(facts.drafting[depth])

    def _points(self, depth: int) -> list[tuple[int, float]]:
        """A depth without a pass of its own costs next to nothing: all was drafted at once."""
        points = sorted((n, max(1e-7, min(times))) for n, times in self._drafting[depth].items())
        return rising(points) or [(1, 1e-7)]

    def _context(self, batch: int, short: float) -> float:
        """Seconds for each token of context of each request; `short`: those of a step at next to none."""
        scheduler = self.engine.scheduler
        room = min(scheduler.max_model_len, scheduler.allocator.num_blocks * scheduler.allocator.block_size // batch)
        length = min(LONG, room - 2 * (STEPS + 1) - 1)
        self._clear()
        long = self._point(batch, 0) if length >= 4 * PROMPT and self._fill(batch, length) else short
        self._clear()
        return max(0.0, long - short) / (batch * max(length, 1))

    def _fill(self, batch: int, length: int) -> bool:
        """Brings the engine to just so many decoding requests; False when it cannot hold them."""
        scheduler = self.engine.scheduler
        while len(scheduler.running) > batch:
            self.engine.abort(scheduler.running[-1].id)
        for _ in range(64):
            ready = sum(request.lag == 1 for request in scheduler.running)
            if ready == batch and not scheduler.waiting:
                return True
            for _ in range(batch - len(scheduler.running) - len(scheduler.waiting)):
                params = SamplingParams(ignore_eos=True, max_tokens=1 << 20)
                self.engine.add_request(f"measuring {next(self._ids)}", self._prompt(length), params)
            extra, self.script.extra = self.script.extra, 0
            self.engine.step()
            self.script.extra = extra
        return False

    def _prompt(self, length: int) -> list[int]:
        length = min(length, self.engine.limits.max_model_len - 1)
        return [self._random.randrange(self.engine.limits.vocab_size) for _ in range(length)]

    def _clear(self) -> None:
        scheduler = self.engine.scheduler
        for request in [*scheduler.running, *scheduler.waiting]:
            self.engine.abort(request.id)


def rising(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value cut to the least of those behind it. Example: 1, 5, 3, 4 become 1, 3, 3, 4."""
    least = list(accumulate((seconds for _, seconds in reversed(points)), min))[::-1]
    return [(n, seconds) for (n, _), seconds in zip(points, least, strict=True)]


def below(points: list[tuple[int, float]], larger: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value cut to that of a larger batch with as many further rows, as far as that was measured."""
    limit = curve([extra for extra, _ in larger], [seconds for _, seconds in larger], 0, larger[-1][0])
    return [(n, min(seconds, limit[n]) if n < len(limit) else seconds) for n, seconds in points]
