"""What a drafter is: it hears what the target read, and guesses what comes next. It never imports the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from paceline.cache.pool import Pool
from paceline.kernels.chain import Asked, Chain
from paceline.kernels.rounds import Outcome
from paceline.request import Request
from paceline.spec.proposal import Proposal

# (depth, requests, confidences) -> which of these requests, which just got draft number `depth` (from 1), shall get one
# more. A confidence is the log-probability (natural) of that draft in the distribution it was drawn from; a greedy
# draft's in the softmax of its logits. Requests that have their width already are among them, and are not drafted for
# whatever is answered.
Deeper = Callable[[int, list[Request], list[float]], list[bool]]


@dataclass(slots=True)
class Seen:
    """What the target read in one step, committed tokens only.

    Request r read the tokens at logical places first[r] .. first[r] + count[r] - 1 (its accepted path, or a prompt
    chunk); the rows at[r] .. at[r] + count[r] - 1 of `hidden` [.., H], in order of r, are the target's states after its
    final norm there.
    `requests[r].tokens` already holds the committed token that follows each of them, unless the request ended earlier.
    rows, blocks: each request's row and block table as they were in the pass; a request that ended has given them back
    by now, but its full blocks live on in the prefix cache, and what a drafter keeps for them must be finished.
    rounds: how many passes these were that no `propose` was for: those of a step of several (`engine.burst`).
    """

    requests: list[Request]
    rows: list[int]
    blocks: list[list[int]]
    first: list[int]
    count: list[int]
    at: list[int]
    hidden: Tensor
    rounds: int = 0

    @property
    def states(self) -> list[Tensor]:
        """Of each request, views. Nobody makes them for a drafter that does not look."""
        sizes, end = [], 0
        for at, count in zip(self.at, self.count, strict=True):
            sizes += [at - end, count]
            end = at + count
        sizes.append(self.hidden.shape[0] - end)
        return list(self.hidden.split_with_sizes(sizes)[1::2])

    def of_those_still_there(self) -> Seen:
        """Without requests that ended, left or were preempted since: their block tables are no longer these."""
        there = [r for r, request in enumerate(self.requests) if request.blocks is self.blocks[r]]
        if len(there) == len(self.requests):
            return self
        return Seen(
            requests=[self.requests[r] for r in there],
            rows=[self.rows[r] for r in there],
            blocks=[self.blocks[r] for r in there],
            first=[self.first[r] for r in there],
            count=[self.count[r] for r in there],
            at=[self.at[r] for r in there],
            hidden=self.hidden,
            rounds=self.rounds,
        )


class Leads(NamedTuple):
    """Requests that draft in a step of several rounds, in order of falling width, and of each what compiled modules are
    told: `counts` of rows that each of them reads first, and the features [.., hidden] that wait, as `Chain` takes
    them."""

    requests: list[Request]
    asked: list[Asked]
    counts: list[list[int]]
    carried: Tensor


class Drafter(Protocol):
    """`max_tokens`: the most drafts per proposal. `name`: as in `--drafter`. `suspects`: what may be wrong when drafts
    are right no more often than by chance; None where that is no surprise. `quantization`: int8, fp8 or none, as it
    runs; None where it has no weights. `pools`: the KV memory of its own. `at_once`: whether drafts of all depths are
    made in one call where nobody is asked in between; questions then cost more than they bring. `chain`: that call, if
    it may be part of a step of several rounds (`engine.burst`)."""

    name: str
    max_tokens: int
    quantization: str | None
    at_once: bool

    @property
    def chain(self) -> Chain | None: ...

    @property
    def pools(self) -> Sequence[Pool]: ...

    @property
    def suspects(self) -> str | None: ...

    def observe(self, seen: Seen) -> None:
        """The target read these tokens; keep what the next `propose` needs. Cheap: heavy work waits for `propose`."""
        ...

    def propose(self, requests: list[Request], widths: list[int], deeper: Deeper | None = None) -> Proposal:
        """Draft at most widths[r] tokens for requests[r] (0: root alone); node 0 is the pending token `tokens[-1]`.

        deeper: asked after the drafts of each depth, who gets one more; None: all, up to their width. A drafter whose
        drafts cost nothing need not ask. Called once every step, also with no requests, so that what was observed is
        absorbed before blocks change hands. Drafting is to cost nothing where it is not done: a request of width 0 is
        not absorbed for, and goes on from its last tokens afterwards."""
        ...

    def forget(self, row: int) -> None:
        """The request in this row left (finished, aborted or preempted). Comes after the `observe` of its last step."""
        ...

    def leads(self, requests: list[Request], widths: list[int]) -> Leads | None:
        """Of these requests those whose width is not 0, for a step of several rounds; None where its `chain` does not
        serve."""
        ...

    def follow(self, before: Seen, leads: Leads, outcome: Outcome) -> None:
        """Such a step is over: what the target read in all but the last of them, and what modules made of it. What it
        read in the last one is observed afterwards."""
        ...


class OnHost:
    """A drafter that takes no part in steps of several rounds."""

    chain: Chain | None = None

    def leads(self, requests: list[Request], widths: list[int]) -> Leads | None:
        return None

    def follow(self, before: Seen, leads: Leads, outcome: Outcome) -> None:
        raise AssertionError("it leads nobody")
