"""The only place where requests become tensors, and where a pass's rows become what the drafter may see."""

from __future__ import annotations

from itertools import accumulate, chain

import torch
from torch import Tensor

from paceline.batch import ForwardBatch, Row, make_batch
from paceline.drafters.base import Seen
from paceline.engine.plan import Plan
from paceline.spec.proposal import Proposal, Verdict


def assemble(plan: Plan, proposal: Proposal, block_size: int, device: torch.device | str | None = None) -> ForwardBatch:
    """The target's batch: the nodes of the ready requests, then the chunks of the reading ones.

    Node j of a request goes to the slot of place `cached + j`; its position is `cached` + its depth (j in a chain).
    Logits are wanted for all nodes, and for the last row of each prompt that ends."""
    rows = [
        Row(tokens, request.cached, request.blocks)
        for tokens, request in zip(proposal.tokens, plan.ready, strict=False)
    ]
    end = sum([len(row.tokens) for row in rows])
    take = list(range(end))
    for request, chunk in plan.reading:
        stop = request.cached + chunk
        rows.append(Row(request.tokens[request.cached : stop], request.cached, request.blocks))
        end += chunk
        if stop == len(request.tokens):
            take.append(end - 1)
    batch = make_batch(rows, block_size, take=take, device=device)
    return batch if proposal.parents is None else _with_trees(batch, proposal.parents[: len(plan.ready)])


def taken(batch: ForwardBatch, hidden: Tensor) -> Tensor:
    """The states whose logits are wanted, of a pass's [T, H]."""
    return hidden if batch.take.shape[0] == hidden.shape[0] else hidden.index_select(0, batch.take)


def accepted_slots(batch: ForwardBatch, verdict: Verdict) -> tuple[Tensor, Tensor]:
    """Where accepted nodes of trees lie and where they belong, in order of place: slots (source, target), [M] each."""
    source, target = [], []
    for start, path in zip(batch.starts, verdict.paths, strict=False):
        for depth, node in enumerate(path):
            if node != depth:
                source.append(start + node)
                target.append(start + depth)
    return batch.slots[source], batch.slots[target]


def seen(plan: Plan, batch: ForwardBatch, hidden: Tensor, verdict: Verdict) -> Seen:
    """What the target read for good, after `commit`: accepted paths as far as they were kept, and chunks of prompts."""
    counts = [request.cached - place for request, place in zip(plan.requests, batch.context, strict=True)]
    at = batch.starts[:-1]
    if batch.tree is not None:
        rows = [_kept_rows(plan, batch, verdict, r, count) for r, count in enumerate(counts)]
        at, hidden = list(accumulate(map(len, rows), initial=0))[:-1], hidden[[*chain.from_iterable(rows)]]
    return Seen(plan.requests, plan.rows, batch.blocks, batch.context, counts, at, hidden)


def _kept_rows(plan: Plan, batch: ForwardBatch, verdict: Verdict, r: int, count: int) -> list[int]:
    """Of a pass with trees, the rows of one request that it keeps."""
    nodes = verdict.paths[r][:count] if r < len(plan.ready) else range(count)
    return [batch.starts[r] + node for node in nodes]


def offered(plan: Plan, proposal: Proposal) -> list[int]:
    """The length of the longest draft that each ready request got from its drafter."""
    ready = len(plan.ready)
    if proposal.parents is not None:
        return [max(_depths(parents)) for parents in proposal.parents[:ready]]
    if not proposal.forced:
        return [len(tokens) - 1 for tokens in proposal.tokens[:ready]]
    return [len(tokens) - 1 - more for tokens, more in zip(proposal.tokens, proposal.forced, strict=False)]


def _with_trees(batch: ForwardBatch, parents: list[list[int]]) -> ForwardBatch:
    positions, masks = batch.positions.tolist(), [-1] * batch.starts[-1]
    for r, own in enumerate(parents):
        start = batch.starts[r]
        for node, depth in enumerate(_depths(own)):
            positions[start + node] = batch.context[r] + depth
            masks[start + node] = 1 << node | (masks[start + own[node]] if node else 0)
    device = batch.positions.device
    return batch._replace(positions=torch.tensor(positions, device=device), tree=torch.tensor(masks, device=device))


def _depths(parents: list[int]) -> list[int]:
    """The depth of each node, root 0. Example: parents [-1, 0, 0, 2] are at depths [0, 1, 1, 2]."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths
