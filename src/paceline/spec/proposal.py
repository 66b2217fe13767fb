"""A draft is a tree in one array of parents; a chain is a tree; no draft is a root alone. All of it is on the host: a
step's drafts are decided one by one there, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor


class Proposal(NamedTuple):
    """Drafts for R requests.

    tokens: of each request its nodes, the pending token first. parents: of each request those of its nodes, parent <
    child, -1 for the root; None where every request is a chain (node j's parent is j - 1).
    forced: how many nodes at the end of each chain nobody drafted, since a grammar allows nothing else; none if empty.
    log_q: of each request the log-probabilities [nodes, V] that its nodes were drawn from; None where they are points.

    Example: the pending token 5 with drafts 8, 9 in a chain: tokens [[5, 8, 9]]. Both as children of 5: the same tokens
    with parents [[-1, 0, 0]].
    """

    tokens: list[list[int]]
    parents: list[list[int]] | None = None
    forced: Sequence[int] = ()
    log_q: list[Tensor | None] | None = None

    @property
    def counts(self) -> list[int]:
        """The nodes of each request, root included."""
        return [len(nodes) for nodes in self.tokens]

    @property
    def chain(self) -> bool:
        return self.parents is None

    def join(self, roots: list[int]) -> Proposal:
        """With one more request for each of these pending tokens, nothing drafted: a root alone."""
        if not roots:
            return self
        parents = None if self.parents is None else self.parents + [[-1] for _ in roots]
        log_q = None if self.log_q is None else self.log_q + [None for _ in roots]
        return Proposal(self.tokens + [[root] for root in roots], parents, self.forced, log_q)

    def cut(self, drafts: list[int]) -> Proposal:
        """Of a chain each, the first drafts[r] drafts of request r, which has at least so many."""
        tokens = [nodes[: kept + 1] for nodes, kept in zip(self.tokens, drafts, strict=True)]
        log_q = self.log_q
        if log_q is not None:
            pairs = zip(log_q, drafts, strict=True)
            log_q = [None if mine is None else mine[: kept + 1] for mine, kept in pairs]
        return Proposal(tokens, None, self.forced, log_q)


class Verdict(NamedTuple):
    """What the target said. For request r: `paths[r]` the accepted nodes in order, root (0) first; `emitted[r]` the
    tokens they bring: the accepted drafts, then the bonus token (the target's own next token after the last accepted
    node); `logprobs[r]`, when asked for, one {token: log-probability} per emitted token; `rejected[r]`, when asked for,
    the draft in the bonus token's place, if there was one."""

    paths: list[list[int]]
    emitted: list[list[int]]
    logprobs: list[list[dict[int, float]]] | None = None
    rejected: Mapping[int, int] = MappingProxyType({})
