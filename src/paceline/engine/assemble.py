"""The only place where requests become tensors, and where a pass's rows become what the drafter may see."""

from __future__ import annotations

from dataclasses import replace

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
    drafts = proposal.tokens.tolist()
    rows = [
        Row(drafts[r][: proposal.counts[r]], request.cached, request.blocks) for r, request in enumerate(plan.ready)
    ]
    end = sum(len(row.tokens) for row in rows)
    take = list(range(end))
    for request, chunk in plan.reading:
        stop = request.cached + chunk
        rows.append(Row(request.tokens[request.cached : stop], request.cached, request.blocks))
        end += chunk
        if stop == len(request.tokens):
            take.append(end - 1)
    batch = make_batch(rows, block_size, take=take, device=device)
    return batch if proposal.chain else _with_trees(batch, proposal, len(plan.ready))


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
    if sum(counts) < batch.starts[-1]:
        hidden = _kept_rows(plan, batch, hidden, verdict, counts)
    return Seen(plan.requests, plan.rows, batch.blocks, batch.context, counts, hidden)


def _kept_rows(plan: Plan, batch: ForwardBatch, hidden: Tensor, verdict: Verdict, counts: list[int]) -> Tensor:
    if batch.tree is None and len(counts) == 1:
        return hidden[: counts[0]]
    rows: list[int] = []
    for r, count in enumerate(counts):
        start = batch.starts[r]
        tree = batch.tree is not None and r < len(plan.ready)
        rows += [start + node for node in verdict.paths[r][:count]] if tree else range(start, start + count)
    return hidden[torch.tensor(rows, device=hidden.device)]


def offered(plan: Plan, proposal: Proposal) -> list[int]:
    """The length of the longest draft that each ready request got from its drafter."""
    counts = proposal.counts[: len(plan.ready)]
    if proposal.chain:
        forced = proposal.forced or [0] * len(counts)
        return [count - 1 - more for count, more in zip(counts, forced, strict=True)]
    parents = proposal.parents.tolist()
    return [max(_depths(parents[r][:count])) for r, count in enumerate(counts)]


def _with_trees(batch: ForwardBatch, proposal: Proposal, ready: int) -> ForwardBatch:
    parents = proposal.parents.tolist()
    positions, masks = batch.positions.tolist(), [-1] * batch.starts[-1]
    for r in range(ready):
        start, own = batch.starts[r], parents[r][: proposal.counts[r]]
        for node, depth in enumerate(_depths(own)):
            positions[start + node] = batch.context[r] + depth
            masks[start + node] = 1 << node | (masks[start + own[node]] if node else 0)
    device = batch.positions.device
    return replace(batch, positions=torch.tensor(positions, device=device), tree=torch.tensor(masks, device=device))


def _depths(parents: list[int]) -> list[int]:
    """The depth of each node, root 0. Example: parents [-1, 0, 0, 2] are at depths [0, 1, 1, 2]."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths
