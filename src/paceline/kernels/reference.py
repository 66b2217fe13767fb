"""The truth in plain torch: what every faster kernel must equal. Written to be read, not to be fast."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_rows(q: Tensor, keys: list[Tensor], values: list[Tensor], hidden: Tensor, scale: float) -> Tensor:
    """Attention of one request's rows over its context.

    q [m, Hq, Dk]; keys and values: the context in pieces [w, Hkv, Dk], [w, Hkv, Dv], sum(w) = W; hidden [m, W] bool:
    what a row must not see. Returns [m, Hq, Dv] in q's dtype; softmax in float32."""
    k, v = torch.cat(keys), torch.cat(values)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.einsum("mhd,whd->hmw", q, k).to(torch.float32) * scale
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(q.dtype)
    return torch.einsum("hmw,whd->mhd", probabilities, v)
