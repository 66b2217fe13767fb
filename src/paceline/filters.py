"""The cuts of min_p, top_k and top_p: what they cut becomes -inf.

Each is a function of a row's scores and that row's parameter alone. Where equal values meet at the edge of a cut the
rule is stated, and does not depend on how a sort orders them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# The nucleus of a trained model is small: look for its edge here before sorting a whole vocabulary.
_NUCLEUS = 256


def cut_min_p(scores: Tensor, min_p: Tensor) -> Tensor:
    """Keep tokens at least min_p times as likely as the likeliest. scores [R, V]; min_p [R], above 0."""
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + min_p.log()[:, None], -torch.inf)


def cut_top_k(scores: Tensor, top_k: Tensor) -> Tensor:
    """Keep the k best tokens and all that equal the k-th. scores [R, V]; top_k [R] int64, 1 to V."""
    best = _best(scores, int(top_k.max()))
    return scores.masked_fill(scores < best.gather(1, top_k[:, None] - 1), -torch.inf)


def cut_top_p(scores: Tensor, top_p: Tensor) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches top_p; of equals at the edge, the lowest ids.

    scores [R, V]; top_p [R] float64. Example: probabilities [.4, .2, .2, .2] with top_p .7 keep tokens 0, 1, 2.
    """
    probs = scores.softmax(-1)
    size, edge = _nucleus_edge(_best(probs, min(_NUCLEUS, probs.shape[1])), top_p)
    wide = (size > _NUCLEUS).flatten().nonzero().flatten()
    if len(wide):
        size[wide], edge[wide] = _nucleus_edge(_best(probs[wide], probs.shape[1]), top_p[wide])
    keep = probs >= edge
    if bool((keep.sum(-1, keepdim=True) > size).any()):
        equal = probs == edge
        keep &= ~equal | (equal.cumsum(-1) <= size - (keep & ~equal).sum(-1, keepdim=True))
    return scores.masked_fill(~keep, -torch.inf)


def _best(values: Tensor, count: int) -> Tensor:
    """The largest `count` of each row, in order."""
    if not values.is_cpu:
        return values.topk(count).values
    # numpy's are several times faster than torch's topk, and tens of times faster than its sort
    found, cut = values.detach().numpy(), values.shape[1] - count
    if cut:
        found = np.partition(found, cut, axis=-1)[:, cut:]
    return torch.from_numpy(np.sort(found, axis=-1)[:, ::-1].copy())


def _nucleus_edge(best: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Size of the nucleus and its least probability, [R, 1] each, from the likeliest probabilities in order, [R, n].

    When these do not reach top_p the size is n + 1, and the edge is the last of them.
    """
    # float64 sums of float32 are as good as exact, so the order of summation cannot matter
    mass = best.double().cumsum(-1)
    size = (mass < top_p[:, None]).sum(-1, keepdim=True) + 1
    return size, best.gather(1, size.clamp(max=best.shape[1]) - 1)
