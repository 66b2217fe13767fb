"""What sampling parameters do to scores: penalties, then the cuts of min_p, top_k and top_p. All of it row by row.

Every function is one of a row's scores and that row's parameters alone. Where an order matters (equal values at a cut)
the rule is stated and does not depend on how a sort breaks ties.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.request import Request

# The nucleus of a trained model is small: look for its edge here before sorting a whole vocabulary.
_NUCLEUS = 256


def penalise(scores: Tensor, request: Request, paths: list[list[int]]) -> None:
    """Apply repetition, then frequency and presence penalties in place to one request's scores [n, V].

    Row i chooses the token after `request.tokens + paths[i]`: drafts on the path count as generated. As in vLLM: the
    repetition penalty (Keskar et al. 2019) looks at prompt and generated tokens, the other two at generated ones only.
    """
    params = request.params
    tokens = torch.tensor(request.tokens, dtype=torch.int64, device=scores.device)
    counts = torch.bincount(tokens[request.num_prompt :], minlength=scores.shape[1]).repeat(len(paths), 1).float()
    rows = [row for row, path in enumerate(paths) for _ in path]
    drafts = [token for path in paths for token in path]
    counts.index_put_((torch.tensor(rows), torch.tensor(drafts)), torch.ones(()), accumulate=True)
    if params.repetition_penalty != 1:
        seen = counts > 0
        seen[:, tokens[: request.num_prompt]] = True
        factors = torch.where(scores > 0, 1 / params.repetition_penalty, params.repetition_penalty)
        scores.mul_(factors.where(seen, 1.0))
    scores.sub_(counts, alpha=params.frequency_penalty)
    scores.sub_(counts.clamp_(max=1), alpha=params.presence_penalty)


def cut_min_p(scores: Tensor, min_p: Tensor) -> Tensor:
    """Keep tokens at least min_p times as likely as the likeliest. scores [R, V]; min_p [R], above 0."""
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + min_p.log()[:, None], -torch.inf)


def cut_top_k(scores: Tensor, top_k: Tensor) -> Tensor:
    """Keep the k best tokens and all that equal the k-th. scores [R, V]; top_k [R] int64, 1 to V."""
    best = scores.topk(int(top_k.max())).values
    return scores.masked_fill(scores < best.gather(1, top_k[:, None] - 1), -torch.inf)


def cut_top_p(scores: Tensor, top_p: Tensor) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches top_p; of equals at the edge, the lowest ids.

    scores [R, V]; top_p [R] float64. Example: probabilities [.4, .2, .2, .2] with top_p .7 keep tokens 0, 1, 2.
    """
    probs = scores.softmax(-1)
    size, edge = _nucleus_edge(probs, top_p, min(_NUCLEUS, scores.shape[1]))
    keep = probs >= edge
    if bool((keep.sum(-1, keepdim=True) > size).any()):
        equal = probs == edge
        keep &= ~equal | (equal.cumsum(-1) <= size - (keep & ~equal).sum(-1, keepdim=True))
    return scores.masked_fill(~keep, -torch.inf)


def _nucleus_edge(probs: Tensor, top_p: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """Size of the nucleus and its least probability, [R, 1] each, from the `head` largest values if these suffice."""
    vocab_size = probs.shape[1]
    best = probs.topk(head).values if head < vocab_size else probs.sort(dim=-1, descending=True).values
    # float64 sums of float32 are as good as exact, so the order of summation cannot matter
    mass = best.double().cumsum(-1)
    size = (mass < top_p[:, None]).sum(-1, keepdim=True) + 1
    if head < vocab_size and int(size.max()) > head:
        return _nucleus_edge(probs, top_p, vocab_size)
    size.clamp_(max=vocab_size)
    return size, best.gather(1, size - 1)
