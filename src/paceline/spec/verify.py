"""`match` verification: the target's own token after every drafted node, then a walk down while a child agrees.

What is emitted is the target's own choice at each place, with noise keyed by that place, so the text is that of plain
decoding whatever was drafted. (Gumbel coupling: Daliri, Musco, Suresh 2024, arXiv:2408.07978.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from paceline.kernels import best_token
from paceline.request import Request
from paceline.sampling import Sampler, top_logprobs
from paceline.spec.constrained import Choices
from paceline.spec.proposal import Proposal, Verdict


def verify(proposal: Proposal, logits: Tensor, requests: Sequence[Request], sampler: Sampler) -> Verdict:
    """Which drafts the target agrees with, and its own token after them.

    logits [L, V], L = sum(proposal.counts): the rows of request 0's nodes in order, then request 1's, ...; a node's row
    is the distribution of the token after that node.

    Example: pending 5, drafts 8, 9 in a chain; the target chooses 8 after 5, 7 after 8 and 3 after 9: draft 8 is
    accepted, 7 is the bonus: paths [[0, 1]], emitted [[8, 7]].
    """
    chosen = _chosen(proposal, logits, requests, sampler)
    paths, emitted, row = [], [], 0
    for r, nodes in enumerate(proposal.tokens):
        mine = chosen[row : row + len(nodes)]
        path = _walk(proposal, r, mine)
        paths.append(path)
        emitted.append([mine[node] for node in path])
        row += len(nodes)
    if not any([request.params.tells for request in requests]):
        return Verdict(paths, emitted)
    asked = [r for r, request in enumerate(requests) if request.params.rejected_drafts]
    rejected = {r: token for r in asked if (token := _after(proposal, r, paths[r][-1])) is not None}
    logprobs = None
    if any([request.params.logprobs is not None for request in requests]):
        firsts = accumulate(proposal.counts, initial=0)
        rows = [[first + node for node in path] for first, path in zip(firsts, paths, strict=False)]
        logprobs = _logprobs(logits, requests, emitted, rows, rejected)
    return Verdict(paths, emitted, logprobs, rejected)


def _chosen(proposal: Proposal, logits: Tensor, requests: Sequence[Request], sampler: Sampler) -> list[int]:
    """The target's own token after every node; within grammars as far as a walk will go."""
    if not any([request.params.heat != 0.0 for request in requests]):  # no row needs its owner or its path
        tokens: list[int] = best_token(logits).tolist()
        return tokens
    owners = [request for request, nodes in zip(requests, proposal.tokens, strict=True) for _ in nodes]
    if all([request.grammar is None for request in requests]):
        return sampler.choose(logits, owners, _node_paths(proposal)).tolist()
    choices = Choices(sampler, logits, owners, _node_paths(proposal))
    _settle(proposal, choices, [r for r, request in enumerate(requests) if request.grammar is not None])
    return choices.tokens


def _walk(proposal: Proposal, r: int, chosen: list[int]) -> list[int]:
    """Nodes of request r that agree with what the target chose after each node, from the root on."""
    path = [0]
    if proposal.parents is None:
        for node, token in enumerate(proposal.tokens[r][1:], 1):
            if token != chosen[node - 1]:
                break
            path.append(node)
        return path
    while (child := _child(proposal, r, path[-1], chosen[path[-1]])) is not None:
        path.append(child)
    return path


def _child(proposal: Proposal, r: int, node: int, token: int) -> int | None:
    """The first child of that node of request r that is this token."""
    tokens = proposal.tokens[r]
    if proposal.parents is None:
        return node + 1 if node + 1 < len(tokens) and tokens[node + 1] == token else None
    parents = proposal.parents[r]
    return next((n for n in range(node + 1, len(tokens)) if parents[n] == node and tokens[n] == token), None)


def _settle(proposal: Proposal, choices: Choices, asked: list[int]) -> None:
    """The choices of those requests, as far as a walk will go: each is settled before its child is known."""
    firsts, going = list(accumulate(proposal.counts, initial=0)), dict.fromkeys(asked, 0)
    while going:
        choices.settle([firsts[r] + node for r, node in going.items()])
        found = {r: _child(proposal, r, node, choices.tokens[firsts[r] + node]) for r, node in going.items()}
        going = {r: node for r, node in found.items() if node is not None}


def _after(proposal: Proposal, r: int, node: int) -> int | None:
    """The first draft of request r right after that node, None when there is none."""
    tokens = proposal.tokens[r]
    parents: Sequence[int] = range(-1, len(tokens) - 1) if proposal.parents is None else proposal.parents[r]
    return next((token for token, parent in zip(tokens, parents, strict=True) if parent == node), None)


def _node_paths(proposal: Proposal) -> list[list[int]]:
    """For every node, request by request: the drafts from the root (not counted) to that node."""
    paths: list[list[int]] = []
    for r, tokens in enumerate(proposal.tokens):
        if proposal.parents is None:
            paths += [tokens[1 : depth + 1] for depth in range(len(tokens))]
            continue
        first, parents = len(paths), proposal.parents[r]
        paths.append([])
        for node in range(1, len(tokens)):
            paths.append([*paths[first + parents[node]], tokens[node]])
    return paths


def _logprobs(
    logits: Tensor,
    requests: Sequence[Request],
    emitted: list[list[int]],
    rows: list[list[int]],
    rejected: dict[int, int],
) -> list[list[dict[int, float]]]:
    """A row for each emitted token; that of the bonus token tells of the rejected draft too."""
    wanted = [request.params.logprobs for request in requests]
    told = [
        [] if count is None else top_logprobs(logits[mine], tokens, count)
        for count, mine, tokens in zip(wanted, rows, emitted, strict=True)
    ]
    for r, token in rejected.items():
        if told[r]:
            told[r][-1] |= top_logprobs(logits[rows[r][-1:]], [token], 0)[0]
    return told
