"""A draft is a tree in one array of parents; a chain is a tree; no draft is a root alone."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """Drafts for R requests, N nodes at most.

    tokens [R, N] int64: node 0 is the pending token. parents [R, N] int64: parent < child; -1 root, -2 padding.
    log_q: [R, N, V] log-probabilities each node was drawn from, or None when the nodes are points.
    counts: R host integers, the nodes in use per request (root included): nodes 0..count-1; the rest is padding.
    chain: every request is a chain (node j's parent is j-1), known on the host so that no one has to look.
    forced: how many nodes at the end of each chain nobody drafted, since a grammar allows nothing else; none if empty.

    Example: the pending token 5 with drafts 8, 9 in a chain, padded to four nodes:
    tokens [[5, 8, 9, 0]], parents [[-1, 0, 1, -2]], counts [3].
    """

    tokens: Tensor
    parents: Tensor
    counts: list[int]
    chain: bool = True
    log_q: Tensor | None = None
    forced: list[int] = field(default_factory=list)

    @staticmethod
    def of_chains(chains: list[list[int]]) -> Proposal:
        """Chains on the host, each one's pending token first, to one padded proposal."""
        if not chains:
            nothing = torch.empty(0, 1, dtype=torch.int64)
            return Proposal(nothing, nothing, [])
        counts = [len(chain) for chain in chains]
        width = max(counts)
        numbers = array("q")  # tokens, then parents: one tensor
        for chain in chains:
            numbers.extend(chain + [0] * (width - len(chain)))
        for count in counts:
            numbers.extend([*range(-1, count - 1), *[-2] * (width - count)])
        tokens, parents = torch.frombuffer(numbers, dtype=torch.int64).view(2, len(chains), width).unbind(0)
        return Proposal(tokens, parents, counts)

    def join(self, roots: list[int]) -> Proposal:
        """With one more request for each of these pending tokens, nothing drafted: a root alone."""
        if not roots:
            return self
        shape = (len(roots), self.tokens.shape[1])
        tokens, parents = self.tokens.new_zeros(shape), self.parents.new_full(shape, -2)
        tokens[:, 0], parents[:, 0] = torch.tensor(roots), -1
        log_q = self.log_q
        if log_q is not None:
            log_q = torch.cat((log_q, log_q.new_zeros(*shape, log_q.shape[2])))
        return Proposal(
            torch.cat((self.tokens, tokens)),
            torch.cat((self.parents, parents)),
            self.counts + [1] * len(roots),
            self.chain,
            log_q,
            self.forced,
        )

    def cut(self, drafts: list[int]) -> Proposal:
        """Of a chain each, the first drafts[r] drafts of request r, which has at least so many."""
        counts = [kept + 1 for kept in drafts]
        width = max(counts)
        kept = torch.arange(width)[None, :] < torch.tensor(counts)[:, None]
        parents = self.parents[:, :width].where(kept.to(self.parents.device), -2)
        log_q = None if self.log_q is None else self.log_q[:, :width]
        return Proposal(self.tokens[:, :width], parents, counts, self.chain, log_q)


@dataclass(frozen=True)
class Verdict:
    """What the target said. For request r: `paths[r]` the accepted nodes in order, root (0) first; `emitted[r]` the
    tokens they bring: the accepted drafts, then the bonus token (the target's own next token after the last accepted
    node); `logprobs[r]`, when asked for, one {token: log-probability} per emitted token; `rejected[r]`, when asked for,
    the draft in the bonus token's place, if there was one."""

    paths: list[list[int]]
    emitted: list[list[int]]
    logprobs: list[list[dict[int, float]]] | None = None
    rejected: dict[int, int] = field(default_factory=dict)
