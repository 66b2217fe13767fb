"""Who runs in a step and how much of each, and what becomes of it. Host data only; knows no torch, drafter or model.

One kind of step: decodes with their drafts and chunks of prompts share a batch. A request holds blocks for all its
tokens from its admission on, so only decoding asks for more. When none are left, the latest arrival is preempted: it
goes back to the front of the queue with its tokens and reads them again later, which is the same as reading a prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from paceline.cache.blocks import BlockAllocator
from paceline.engine.plan import Plan, StepOutput
from paceline.engine.stop import Ending
from paceline.errors import UserError
from paceline.request import FORCED, Request

if TYPE_CHECKING:
    from paceline.spec.proposal import Verdict
    from paceline.spec.width import WidthPolicy

_AHEAD = 3  # blocks taken beyond the need while most are free, so that neighbours do not cut each other's runs


class Scheduler:
    """`running` is in order of arrival, `waiting` as well, and all that runs arrived before all that waits."""

    def __init__(
        self,
        allocator: BlockAllocator,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        policy: WidthPolicy,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise UserError(
                f"max_num_batched_tokens ({max_num_batched_tokens}) must be at least max_num_seqs ({max_num_seqs}), "
                "one token for each request."
            )
        room = allocator.num_blocks * allocator.block_size
        if max_model_len > room:
            raise UserError(
                f"max_model_len is {max_model_len}, but {allocator.num_blocks} blocks hold only {room} tokens: "
                "lower max_model_len or raise num_blocks."
            )
        self.allocator, self.policy, self.widths = allocator, policy, policy.widths
        self.max_num_batched_tokens, self.max_model_len = max_num_batched_tokens, max_model_len
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._endings: dict[str, Ending] = {}
        self._rows = list(range(max_num_seqs))[::-1]
        self._left: list[int] = []

    def add(self, requests: list[Request], endings: list[Ending]) -> None:
        """Queues them all, or none: raises `UserError` when one has the id of a request that has not ended."""
        for request in requests:
            if request.id in self._endings:
                raise UserError(f"A request with the id {request.id!r} is already running; give each its own id.")
        self._endings.update((request.id, ending) for request, ending in zip(requests, endings, strict=True))
        self.waiting.extend(requests)

    def abort(self, request_id: str) -> Request | None:
        """Ends a request now, wherever it is; None when it is not here (any more)."""
        if request_id not in self._endings:
            return None
        for queue in (self.running, self.waiting):
            for request in queue:
                if request.id == request_id:
                    queue.remove(request)
                    self._finish(request, "abort")
                    return request
        raise AssertionError(f"request {request_id!r} has an ending but is in no queue")

    @property
    def has_unfinished(self) -> bool:
        return bool(self._endings)

    # -- before the pass

    def plan(self) -> Plan:
        """Every decode's pending token; then drafts; then prompts in order of arrival; then new requests."""
        self._hold_pending_tokens()
        ready = [request for request in self.running if len(request.tokens) - request.cached == 1]
        widths, rooms, budget = self._fit(ready)
        reading: list[tuple[Request, int]] = []
        if len(ready) < len(self.running):
            for request in self.running:
                lag = len(request.tokens) - request.cached
                if lag > 1 and budget:
                    reading.append((request, min(lag, budget)))
                    budget -= reading[-1][1]
        while self.waiting and budget and self._rows and self._admit(self.waiting[0]):
            request = self.waiting.popleft()
            reading.append((request, min(request.lag, budget)))
            budget -= reading[-1][1]
        left, self._left = self._left, []
        return Plan(ready, widths, reading, left, rooms)

    def _hold_pending_tokens(self) -> None:
        """A block for every token of those that run, if need be at the cost of the latest arrivals."""
        size = self.allocator.block_size
        for request in self.running:  # only its end is cut off below, maybe this request too
            while len(request.blocks) * size < len(request.tokens) and not self._grow(request, len(request.tokens)):
                if self._reclaim():
                    continue
                victim = self.running.pop()
                self._preempt(victim)
                if victim is request:
                    break

    def _fit(self, ready: list[Request]) -> tuple[list[int], list[int], int]:
        """The widths and rooms, cut to what may be emitted, to the free blocks and to the batch; the tokens left in it.

        While others have prompts to read, drafts get at most half of the batch."""
        size, budget = self.allocator.block_size, self.max_num_batched_tokens - len(ready)
        others = self.waiting or len(ready) < len(self.running)
        widths = self.widths(ready) if ready else []
        spare, rooms = budget // 2 if others else budget, list(widths)
        for r, request in enumerate(ready):
            length = len(request.tokens)
            if request.grammar is not None and request.num_speculative_tokens != 0:
                widths[r], rooms[r] = request.grammar.room(widths[r])
            room = min(rooms[r], self._endings[request.id].longest - length - 1, spare)
            if length + room > len(request.blocks) * size and not self._grow(request, length + room):
                room = len(request.blocks) * size - length
            widths[r], rooms[r] = min(widths[r], room), room
            spare -= room
        return widths, rooms, budget - sum(rooms)

    def _admit(self, request: Request) -> bool:
        """Gives the request a row and blocks for all its tokens, unless it has to wait."""
        allocator, tokens = self.allocator, request.tokens
        scored = request.params.prompt_logprobs is not None  # then every token has to be read, known or not
        hits = [] if scored else allocator.match(tokens)
        if not scored and self._soon_known(tokens, len(hits) * allocator.block_size):
            return False
        wanted = -(-len(tokens) // allocator.block_size) - len(hits)
        # One block is left to each of those that run; without it the newcomer would soon be preempted.
        if wanted + allocator.num_idle(hits) + len(self.running) > allocator.num_free:
            return False
        allocator.share(hits)
        request.blocks, request.cached = hits, len(hits) * allocator.block_size
        if not request.preemptions:
            request.prefix_hit_tokens = request.cached
        self._grow(request, len(tokens))
        request.row = self._rows.pop()
        self.running.append(request)
        return True

    def _soon_known(self, tokens: list[int], known: int) -> bool:
        """Whether a request that reads now will leave half or more of what is yet to be read in the prefix cache."""
        size = self.allocator.block_size
        for other in self.running if self.allocator.prefix_caching else ():
            if other.lag > 1 and other.tokens[:known] == tokens[:known]:
                end = known
                while end + size < len(tokens) and other.tokens[end : end + size] == tokens[end : end + size]:
                    end += size
                if 2 * (end - known) >= len(tokens) - known:
                    return True
        return False

    def _grow(self, request: Request, places: int) -> bool:
        """Blocks for `places` tokens in all, or nothing at all and False."""
        allocator, blocks = self.allocator, request.blocks
        need = -(-places // allocator.block_size) - len(blocks)
        if need > allocator.num_free:
            return False
        if need > 0:
            most = -(-self._endings[request.id].longest // allocator.block_size) - len(blocks)
            need += max(0, min(_AHEAD, most - need, allocator.num_free - allocator.num_blocks // 2 - need))
            blocks += allocator.allocate(need, blocks[-1] if blocks else None)
        return True

    def _reclaim(self) -> bool:
        """Takes back the blocks that nobody has written to yet; False when there are none."""
        allocator, before = self.allocator, self.allocator.num_free
        for request in self.running:
            used = -(-len(request.tokens) // allocator.block_size)
            allocator.release(request.blocks[used:])
            del request.blocks[used:]
        return allocator.num_free > before

    def _preempt(self, request: Request) -> None:
        self._leave(request)
        request.cached = 0
        request.preemptions += 1
        self.waiting.appendleft(request)

    # -- a step of several rounds

    def hold(self, plan: Plan, most: int) -> int:
        """How many rounds, of at most so many, this step can have: nobody might begin to read, only tokens and lengths
        end requests, and there are blocks for all. It is over when somebody comes near its length. Where blocks are
        few, as many as who gets none has room for."""
        if self.waiting and self._rows:
            return 0
        for request, width in zip(plan.ready, plan.widths, strict=True):
            ending, length = self._endings[request.id], len(request.tokens)
            if not ending.plain:
                return 0
            if not self._grow(request, min(length + most * (width + 1), ending.longest)):
                most = min(most, (len(request.blocks) * self.allocator.block_size - length) // (width + 1))
        return most

    def ends_of(self, request: Request) -> tuple[Sequence[int], int]:
        """The tokens that would end it, and how many it may still bring."""
        ending = self._endings[request.id]
        return ending.tokens, ending.longest - len(request.tokens)

    def commit_rounds(
        self, plan: Plan, requests: list[Request], tokens: list[list[int]], accepted: list[list[int]]
    ) -> list[StepOutput]:
        """As `commit`, of rounds of which only the last one may end somebody; for these requests of the plan, in any
        order: the tokens of each, and the drafts accepted in each round."""
        widths = {request.row: width for request, width in zip(plan.ready, plan.widths, strict=True)}
        outputs = []
        for request, new, rights in zip(requests, tokens, accepted, strict=True):
            ending, read, width = self._endings[request.id], request.cached, widths[request.row]
            kept, reason = ending.cut(len(request.tokens), new)
            before, last = len(new) - rights[-1] - 1, rights[-1]
            request.tokens += kept[:before]
            for right in rights[:-1]:
                request.origins += range(1, right + 1)
                request.origins.append(0)
            request.stats.record_many(width, rights[:-1])
            self._append(request, kept[before:], last, width)
            _record(request, width, last, len(kept) - before, reason)
            self._settle(request, read, reason)
            outputs.append(StepOutput(request, kept, ending.text))
        return outputs

    # -- after the pass

    def commit(self, plan: Plan, offered: list[int], verdict: Verdict) -> list[StepOutput]:
        """Counts what was read, appends what was emitted, and ends what ends.

        offered[r]: the length of the longest draft that ready[r] offered; what was accepted beyond it was forced.
        Afterwards all tokens but the last count as read (when a request ended inside its accepted drafts the last one
        was read too, but nobody needs it)."""
        for request, chunk in plan.reading:
            request.cached += chunk
            self.allocator.register(request.blocks, request.tokens, request.cached)
        outputs = []
        for r, request in enumerate(plan.verified):
            ending, read = self._endings[request.id], request.cached
            kept, reason = ending.cut(len(request.tokens), verdict.emitted[r])
            accepted, drafted = len(verdict.paths[r]) - 1, offered[r] if r < len(offered) else 0
            self._append(request, kept, accepted, drafted)
            if verdict.logprobs is not None:
                request.logprobs += verdict.logprobs[r][: len(kept)]
            if request.params.rejected_drafts:
                whole = [None] * (len(verdict.emitted[r]) - 1) + [verdict.rejected.get(r)]
                request.rejected += whole[: len(kept)]
            if r < len(offered):
                _record(request, drafted, accepted, len(kept), reason)
            self._settle(request, read, reason)
            outputs.append(StepOutput(request, kept, ending.text))
        return outputs

    def _settle(self, request: Request, read: int, reason: str | None) -> None:
        """Blocks that became full since `read` tokens were are for others too; and a request that ends leaves."""
        if request.cached // self.allocator.block_size > read // self.allocator.block_size:
            self.allocator.register(request.blocks, request.tokens, request.cached)
        if reason is not None:
            self.running.remove(request)
            self._finish(request, reason)

    def _append(self, request: Request, kept: list[int], accepted: int, drafted: int) -> None:
        if request.first_token_time is None:
            request.first_token_time = perf_counter()
        request.tokens += kept
        request.cached = len(request.tokens) - 1
        accepted = min(accepted, len(kept))
        drafts = min(accepted, drafted)
        request.origins += range(1, drafts + 1)
        request.origins += [FORCED] * (accepted - drafts)
        request.origins += [0] * (len(kept) - accepted)

    def _finish(self, request: Request, reason: str) -> None:
        request.finish_reason, request.finish_time = reason, perf_counter()
        text = self._endings.pop(request.id).text
        if text is not None:
            text.close()
        if request.row >= 0:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        """Row and blocks are free for others. The old block table stays as it is, for the drafter to read from."""
        self.allocator.release(request.blocks)
        self._rows.append(request.row)
        self._left.append(request.row)
        request.blocks, request.row = [], -1


def _record(request: Request, offered: int, accepted: int, kept: int, reason: str | None) -> None:
    """Drafts beyond the end of the text were neither right nor wrong."""
    drafted = offered if reason is None else min(offered, kept)
    accepted = min(accepted, kept)
    request.stats.record(drafted, min(accepted, offered), kept, offered)
    request.stats.forced += max(0, accepted - offered)
