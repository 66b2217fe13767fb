"""What steps cost on this machine: the engine itself runs random tokens at a staircase of batch sizes and widths.

Nothing is modelled: what is timed is the step that will serve, with its scheduling, its drafter and its verification.
Other processes only ever add time, so the quickest of some steps counts, and no more work is taken to be quicker.
Random tokens spread over the experts of a mixture as varied requests do, so that more rows touch more experts here too.
"""

from __future__ import annotations

import random
from itertools import accumulate, count, pairwise
from time import perf_counter
from typing import Any, NamedTuple

from torch import Tensor

from paceline.drafters.base import Deeper, Drafter, OnHost, Seen
from paceline.engine.engine import Engine
from paceline.engine.stats import HOST, EngineStats
from paceline.engine.timed import SECONDS as BURST
from paceline.request import Request, SamplingParams
from paceline.spec.cost import CostTable, along, curve
from paceline.spec.proposal import Proposal, Verdict
from paceline.spec.width import StepFacts

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
WIDTHS = (0, 1, 2, 3, 4, 6, 8)  # drafts for each request; large batches never gain by the deeper ones
STEPS, ROUNDS, LONG = 3, 4, 512  # timed steps a point in each round; tokens of a long context
MANY = (4, 16)  # requests with long contexts
PROMPT, SHORT = 64, 12  # tokens of prompts: as requests have on the average, or next to none where reading takes long
ACCEPTED = 0.8  # how likely a draft is taken as right: drafters read what was accepted
MODULES = 3  # drafts up to which each may have a module of its own, which reads prompts
SECONDS = 6.0  # after so long the larger batches stay as they are estimated


class Script:
    """A width policy that spreads `extra` drafts over the batch, and remembers what the step told."""

    listens, asks, idle = True, False, 0

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

    def skip(self, steps: int) -> None:
        """Nothing to count."""

    def learn(self, facts: StepFacts) -> None:
        self.facts = facts

    def as_dict(self) -> dict[str, Any]:
        return {}


class Filling(OnHost):
    """A drafter whose proposals are filled up to their width with random tokens: rows cost the same, guessed or not."""

    def __init__(self, drafter: Drafter, vocab_size: int) -> None:
        self._drafter, self._vocab_size, self._random = drafter, vocab_size, random.Random(0)
        self.name, self.max_tokens, self.suspects = drafter.name, drafter.max_tokens, None
        self.quantization, self.pools, self.at_once = drafter.quantization, drafter.pools, drafter.at_once

    def observe(self, seen: Seen) -> None:
        self._drafter.observe(seen)

    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        proposal = self._drafter.propose(requests, widths, deeper)
        return Proposal([self._filled(nodes, width) for nodes, width in zip(proposal.tokens, widths, strict=True)])

    def _filled(self, nodes: list[int], width: int) -> list[int]:
        return nodes + [self._random.randrange(self._vocab_size) for _ in range(width + 1 - len(nodes))]

    def forget(self, row: int) -> None:
        self._drafter.forget(row)


class Point(NamedTuple):
    """A step: seconds without drafting, and of drafting; tokens of context, summed over the requests."""

    seconds: float
    drafting: float
    context: int


class Measuring:
    """Runs an engine that nobody uses yet; `table` leaves it as it was."""

    def __init__(self, engine: Engine, most: int, max_num_seqs: int) -> None:
        self.engine, self.script, self.max_num_seqs = engine, Script(most), max_num_seqs
        self._random, self._ids, self._verify, self._prompt = random.Random(0), count(), engine.verify, PROMPT

    def table(self, seconds: float = SECONDS) -> CostTable:
        """The measured costs. Takes about so many seconds at most, one batch size more at worst."""
        engine = self.engine
        policy, drafter, allocator = engine.policy.policy, engine.drafter, engine.scheduler.allocator
        caching, canary = allocator.prefix_caching, engine.canary.suspects
        engine.policy.policy, engine.drafter = self.script, Filling(drafter, engine.limits.vocab_size)
        allocator.prefix_caching, engine.canary.suspects, engine.verify = False, None, self._verdict
        try:
            return self._measure(perf_counter() + seconds)
        finally:
            self._clear()
            engine.step()  # the drafter forgets the last rows
            engine.policy.policy, engine.drafter, engine.verify = policy, drafter, self._verify
            engine.policy.seconds, kind = 0.0, drafter.quantization
            engine.stats = EngineStats(draft_quantization=kind, policy=engine.policy.as_dict)
            allocator.prefix_caching, engine.canary.suspects = caching, canary

    def _measure(self, until: float) -> CostTable:
        self._fill(1, SHORT)
        for _ in range(STEPS):  # the first steps load code and memory
            self._point(1, self.script.most)
        self._choose_prompts()
        points = {batch: found for batch, found in sorted(self._rounds(until).items()) if 0 in found}
        points = points or {1: {0: Point(1.0, 0.0, 0)}}  # no room for a step to measure: only ratios matter
        contexts, further = self._contexts(max(points))
        curves = {
            batch: rising(_less(_at_no_context(batch, found, contexts, further), self._saved(batch)))
            for batch, found in points.items()
        }
        batches = sorted(curves)
        for fewer, more in list(pairwise(batches))[::-1]:
            curves[fewer] = below(curves[fewer], curves[more], more - fewer)
        return CostTable(
            batches,
            [[extra for extra, _ in curves[batch]] for batch in batches],
            [[spent for _, spent in curves[batch]] for batch in batches],
            contexts,
            [_drafting(points, depth) for depth in range(self.script.most)],
            further,
            self._absorbing(),
            self.engine.drafter.at_once,
        )

    def _choose_prompts(self) -> None:
        """Short ones, if reading longer ones for the largest batch took much of the time."""
        self._clear()
        begin = perf_counter()
        self._fill(1, PROMPT)
        if (perf_counter() - begin) * self.max_num_seqs > SECONDS / 8:
            self._prompt = SHORT

    def _rounds(self, until: float) -> dict[int, dict[int, Point]]:
        """Batch -> further rows -> the quickest of all rounds. A slow moment of the machine spoils one round."""
        found: dict[int, dict[int, Point]] = {}
        for number in range(ROUNDS):
            for batch in self._batches():
                if perf_counter() > until and (number or found):
                    return found
                for extra in self._extras(batch):
                    point = self._point(batch, extra)
                    if point is None:  # more has no room either
                        break
                    best = found.setdefault(batch, {})
                    old = best.get(extra, point)
                    best[extra] = min(point, old)._replace(drafting=min(point.drafting, old.drafting))
        return found

    def _batches(self) -> list[int]:
        """The smallest, the largest, then those between."""
        inner = [batch for batch in BATCHES[::-1] if 1 < batch < self.max_num_seqs]
        return list(dict.fromkeys((1, self.max_num_seqs, *inner)))

    def _extras(self, batch: int) -> list[int]:
        """Those that a policy chooses from (`spec/referee`): few, and so many for each request."""
        widest = self.script.most if batch <= 4 else min(4 if batch <= 16 else 3, self.script.most)
        return sorted({batch // 4, *(batch * min(k, widest) for k in WIDTHS)})

    def _point(self, batch: int, extra: int) -> Point | None:
        """The quickest of some steps; None where the engine has no room for so much."""
        self.script.extra, found = extra, []
        for _ in range(STEPS + 1):
            facts = self._step(batch)
            if facts is None or facts.prompts or sum(facts.verified) != extra:
                return None
            found.append(Point(facts.seconds, sum(facts.drafting), facts.context))
        return min(found[1:])._replace(drafting=min(point.drafting for point in found[1:]))

    def _step(self, batch: int) -> StepFacts | None:
        """One step of just so many decoding requests."""
        if not self._fill(batch, self._prompt):
            return None
        self.engine.step()
        return self.script.facts

    def _saved(self, batch: int) -> float:
        """What the host takes of a step, where as one of several rounds it would take next to nothing. The least of
        some steps without drafts: with drafts it is about the same."""
        self.script.extra, found = 0, []
        for _ in range(STEPS):
            before = dict(self.engine.stats.seconds)
            facts = self._step(batch)
            if facts is not None and not facts.prompts and facts.seconds < BURST / 2:
                found.append(sum(self.engine.stats.seconds[part] - before[part] for part in HOST))
        return min(found, default=0.0) if self.engine.burst is not None else 0.0

    def _contexts(self, most: int) -> tuple[list[tuple[int, float]], float]:
        """Tokens of context in all, and the seconds that they take; and those for each that a further row of its
        request reads. A cache may hold that of few requests; more are asked where reading prompts is quick."""
        found: list[tuple[int, float]] = []
        further = 0.0
        for batch in MANY:
            begin = perf_counter()
            context, slopes = self._context(min(batch, most))
            if not slopes or (found and context <= found[-1][0]):
                break
            found.append((context, max(context * slopes[0], found[-1][1] if found else 0.0)))
            further = max(0.0, slopes[1] - slopes[0])
            if perf_counter() - begin > SECONDS / 16:
                break
        return found, further

    def _context(self, batch: int) -> tuple[int, list[float]]:
        """Of a batch with long contexts, tokens of context in all, and the seconds for each without further rows and
        with one for each request; none where there is no room for long ones."""
        scheduler = self.engine.scheduler
        room = min(scheduler.max_model_len, scheduler.allocator.num_blocks * scheduler.allocator.block_size // batch)
        length = min(LONG, room // 2)
        near, far = (self._at_context(batch, prompt) for prompt in (SHORT, length))
        if length < 4 * SHORT or near is None or far is None:
            return 0, []
        span = far[0].context - near[0].context
        return far[0].context, [(there.seconds - here.seconds) / span for here, there in zip(near, far, strict=True)]

    def _at_context(self, batch: int, length: int) -> list[Point] | None:
        """Steps without drafts, and with one for each request, after prompts of that length."""
        self._clear()
        prompt, self._prompt = self._prompt, length
        found = [[self._point(batch, extra) for extra in (0, batch)] for _ in range(ROUNDS)]
        self._prompt = prompt
        self._clear()
        points = [[point for point in column if point] for column in zip(*found, strict=True)]
        return [min(column) for column in points] if all(points) else None

    def _absorbing(self) -> list[float]:
        """Seconds that drafters take for each token of a prompt, with 1, 2, ... drafts for its request."""
        found = [self._absorbed(drafts) for _ in range(2) for drafts in range(1, min(self.script.most, MODULES) + 1)]
        half = len(found) // 2
        return list(accumulate(map(min, found[:half], found[half:]), max))

    def _absorbed(self, drafts: int) -> float:
        """What the first step after a prompt drafts longer than those behind it, for each token."""
        self._clear()
        if not self._fill(1, PROMPT):
            return 0.0
        self.script.extra, spent = drafts, []
        for _ in range(STEPS):
            self.engine.step()
            spent.append(sum(self.script.facts.drafting) if self.script.facts else 0.0)
        return max(0.0, spent[0] - min(spent)) / PROMPT

    def _verdict(self, proposal: Proposal, logits: Tensor, requests: list[Request]) -> Verdict:
        """As it would be if drafts were right as often as they are on real text."""
        found = self._verify(proposal, logits, requests)
        if not proposal.chain:
            return found
        paths, emitted = [], []
        for row, own in zip(proposal.tokens, found.emitted, strict=True):
            right = 0
            while right < len(row) - 1 and self._random.random() < ACCEPTED:
                right += 1
            paths.append(list(range(right + 1)))
            emitted.append([*row[1 : right + 1], own[-1]])
        return Verdict(paths, emitted)

    def _fill(self, batch: int, length: int) -> bool:
        """Brings the engine to just so many decoding requests; False when it cannot hold them."""
        scheduler = self.engine.scheduler
        while len(scheduler.running) > batch:
            self.engine.abort(scheduler.running[-1].id)
        for _ in range(4 + 2 * batch * length // scheduler.max_num_batched_tokens):
            ready = sum(request.lag == 1 for request in scheduler.running)
            if ready == batch and not scheduler.waiting:
                return True
            for _ in range(batch - len(scheduler.running) - len(scheduler.waiting)):
                params = SamplingParams(ignore_eos=True, max_tokens=1 << 20)
                self.engine.add_request(f"measuring {next(self._ids)}", self._text(length), params)
            extra, self.script.extra = self.script.extra, 0
            self.engine.step()
            self.script.extra = extra
        return False

    def _text(self, length: int) -> list[int]:
        length = min(length, self.engine.limits.max_model_len - 1)
        return [self._random.randrange(self.engine.limits.vocab_size) for _ in range(length)]

    def _clear(self) -> None:
        scheduler = self.engine.scheduler
        for request in [*scheduler.running, *scheduler.waiting]:
            self.engine.abort(request.id)


def _at_no_context(
    batch: int, points: dict[int, Point], contexts: list[tuple[int, float]], further: float
) -> list[tuple[int, float]]:
    """Further rows and seconds, without what the context took; at least half of what was measured."""
    found = []
    for extra, point in sorted(points.items()):
        took = along(contexts, point.context) + further * extra / batch * point.context
        found.append((extra, max(point.seconds / 2, point.seconds - took)))
    return found


def _less(points: list[tuple[int, float]], saved: float) -> list[tuple[int, float]]:
    """Further rows and seconds, without that; at least half of what they were."""
    return [(extra, max(seconds / 2, seconds - saved)) for extra, seconds in points]


def _drafting(points: dict[int, dict[int, Point]], depth: int) -> list[tuple[int, float]]:
    """Requests, and seconds of their draft number `depth` + 1. The first draft has a pass that reads what was accepted;
    those behind it are alike, so that their mean is taken. Where everything is drafted at once, next to nothing."""
    found = []
    for batch, mine in points.items():
        totals = dict(rising([(extra // batch, x.drafting) for extra, x in sorted(mine.items()) if extra % batch == 0]))
        widest = max(totals)
        if widest and not depth:
            found.append((batch, max(1e-7, totals[1] - totals[0])))
        elif depth < widest:
            found.append((batch, max(1e-7, (totals[widest] - totals[1]) / (widest - 1))))
    return rising(found) or [(1, 1e-7)]


def rising(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value cut to the least of those behind it. Example: 1, 5, 3, 4 become 1, 3, 3, 4."""
    least = list(accumulate((seconds for _, seconds in reversed(points)), min))[::-1]
    return [(n, seconds) for (n, _), seconds in zip(points, least, strict=True)]


def below(points: list[tuple[int, float]], larger: list[tuple[int, float]], more: int) -> list[tuple[int, float]]:
    """Each value cut to that of a batch with `more` requests and as many rows in all, as far as that was measured."""
    limit = curve([extra for extra, _ in larger], [seconds for _, seconds in larger], 0, larger[-1][0])
    rows = [max(0, extra - more) for extra, _ in points]
    return [(n, min(x, limit[row]) if row < len(limit) else x) for (n, x), row in zip(points, rows, strict=True)]
