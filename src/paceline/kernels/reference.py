"""The truth in plain torch: what every faster kernel must equal. Written to be read, not to be fast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.formats import FP8, format_of, quantise_activations

# lowbias32's multipliers, as the signed integers that int32 tensors hold
_MULTIPLIERS = (0x21F0AAAD, 0xD35A2D97 - 2**32)
# 31 random bits b become -(b * scale + 2**-32): between -1 and 0 also after rounding, and finest where it matters: at 0
_SCALE = (1 - 2**-24) * 2**-31


@dataclass(frozen=True)
class Sight:
    """Which of `width` places the `rows` rows of one request see. Row r is at place `context` + r; it sees the places
    from `first` to its own (a row below `first` sees itself, so that its output stays finite). tree [rows] int64: bit n
    says whether it sees row n; None when every row sees those before it.

    Example: context 5, rows 2: row 0 sees places 0..5, row 1 sees 0..6."""

    rows: int
    width: int
    context: int
    first: int
    device: torch.device
    tree: Tensor | None = None

    @cached_property
    def hidden(self) -> Tensor:
        """[rows, width] bool: what is not seen."""
        # each column's place among these rows; below 0: context
        node = torch.arange(-self.context, self.width - self.context, device=self.device)
        row = torch.arange(self.rows, device=self.device)[:, None]
        hidden = node > row
        if self.tree is not None:
            ancestors = self.tree[:, None] >> node.clamp(0, 62)
            hidden |= (node >= 0) & (node < 63) & ((ancestors & 1) == 0)
        if self.first:
            hidden |= node < row.clamp(max=self.first - self.context)
        return hidden


def attend_rows(q: Tensor, keys: list[Tensor], values: list[Tensor], sight: Sight, scale: float) -> Tensor:
    """Attention of one request's rows over its context.

    q [m, Hq, Dk]; keys and values: the context in pieces [w, Hkv, Dk], [w, Hkv, Dv], sum(w) = sight.width. Returns
    [m, Hq, Dv] in q's dtype; softmax in float32."""
    k, v = torch.cat(keys), torch.cat(values)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.einsum("mhd,whd->hmw", q, k).to(torch.float32) * scale
    probabilities = scores.masked_fill(sight.hidden, float("-inf")).softmax(-1).to(q.dtype)
    return torch.einsum("hmw,whd->mhd", probabilities, v)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    return F.rms_norm(x, weight.shape, weight, eps)


def norm_pairs(
    tokens: Tensor, table: Tensor, states: Tensor, weights: tuple[Tensor, Tensor], eps: float, states_first: bool
) -> Tensor:
    """tokens [T], table [vocab, n], states [T, n] to [T, 2 * n]: the norms of the tokens' rows and of the states, each
    by its weight, side by side; the states' first when `states_first`."""
    pair = [rms_norm(x, weight, eps) for x, weight in zip((F.embedding(tokens, table), states), weights, strict=True)]
    return torch.cat(pair[::-1] if states_first else pair, dim=-1)


def best_token(scores: Tensor) -> Tensor:
    """Each row's best column, the lowest of equals: [R, V] to [R] int64."""
    scores = scores.float()
    if scores.is_cpu:  # the same rule, several times faster than torch's
        return torch.from_numpy(scores.detach().numpy().argmax(-1))
    return scores.argmax(-1)


def best_of(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's best column, the lowest of equals, [R] int64; and its log-probability in the softmax, [R] float32."""
    scores, best = scores.to(torch.float32), best_token(scores)
    return best, scores.gather(1, best[:, None]).flatten() - scores.logsumexp(-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [T, heads, dim] by cos and sin [T, 1, dim / 2]. Pairs are (0,1), (2,3), ... when `interleaved`, else
    (i, i + dim/2); they come out as halves either way, for q and k alike."""
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    # (a + ib) * (cos + i sin), in float32: bf16 angles would lose far positions.
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def rotate_and_norm(made: Tensor, cos: Tensor, sin: Tensor, weight: Tensor, eps: float) -> None:
    """In place on made [T, heads, rank + rope]: rotates the last `rope` numbers of every head, interleaved pairs, and
    normalises the first `rank` = len(weight) of the last head (the key's latent)."""
    rank = len(weight)
    made[..., rank:] = rotate(made[..., rank:], cos, sin, interleaved=True)
    made[:, -1, :rank] = rms_norm(made[:, -1, :rank], weight, eps)


def route(x: Tensor, weight: Tensor, bias: Tensor, top: int, normalise: bool, scaling: float) -> Tensor:
    """x [T, hidden], weight [E, hidden], bias [E] to each expert's share [T, E] float32: sigmoid scores of the `top`
    with the largest score + bias, made to sum to 1 when `normalise`, times `scaling`; 0 for the others."""
    scores = F.linear(x.to(torch.float32), weight.to(torch.float32)).sigmoid()
    return shares_of(scores, bias, top, normalise, scaling)


def shares_of(scores: Tensor, bias: Tensor, top: int, normalise: bool, scaling: float) -> Tensor:
    """The second half of `route`, from sigmoid scores [T, E]."""
    chosen = (scores + bias).topk(top, dim=-1).indices
    shares = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
    if normalise:
        shares = shares / (shares.sum(dim=-1, keepdim=True) + 1e-20)
    return shares * scaling


def gated(gate_up: Tensor, shares: Tensor | None, width: int) -> Tensor:
    """gate_up [T, 2 * n] to silu(first n) * last n [T, n]; its first E * width columns times shares [T, E], each for
    `width` columns."""
    gate, up = gate_up.chunk(2, dim=-1)
    inner = F.silu(gate) * up
    return inner if shares is None else shared_out(inner, shares, width)


def shared_out(inner: Tensor, shares: Tensor, width: int) -> Tensor:
    """inner [T, n], its first E * width columns times shares [T, E], each for `width` columns."""
    owned = shares.shape[1] * width
    scaled = inner[:, :owned] * shares.repeat_interleave(width, dim=1).to(inner.dtype)
    return torch.cat((scaled, inner[:, owned:]), dim=1)


def quantised_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] times weight [out, in], codes of a number format with their scales by row, plus bias [out], in x's
    dtype.

    int8: whole numbers are exact in x's dtype, and the scale multiplies the sum. fp8: a weight is its code times its
    scale, rounded to x's dtype, as if it had been stored so."""
    form = format_of(weight.dtype)
    assert form is not None
    if form.group is None:
        y = F.linear(x.float(), weight.float()) * scale.flatten()
        return (y if bias is None else y + bias.float()).to(x.dtype)
    return F.linear(x, form.dequantise(weight, scale).to(x.dtype), bias)


def activations_too(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, powers: bool) -> Tensor:
    """As `quantised_linear` of an FP8 weight, with x quantised too, by row and 128 inputs: the sum over groups of
    (sum of codes times codes) * x's scale * the weight's scale, in float32, rounded once to x's dtype, then plus bias.

    powers: x's scales are powers of two."""
    y = F.linear(FP8.dequantise(*quantise_activations(x, powers)), FP8.dequantise(weight, scale)).to(x.dtype)
    return y if bias is None else y + bias


def gumbel(keys: Tensor, hashes: Tensor) -> Tensor:
    """keys [R] int64, hashes of the token ids [V] int32 to standard Gumbel noise [R, V] float32."""
    first, second = keys.view(torch.int32).view(-1, 2, 1).unbind(1)
    bits = hashes ^ first
    bits.mul_(_MULTIPLIERS[0])
    _fold(bits, 15)
    bits.bitwise_xor_(second).mul_(_MULTIPLIERS[1])
    bits.bitwise_xor_(bits >> 15)  # the arithmetic shift folds the sign away: 31 bits, never negative
    # -log(-log(1 - v)) for v = bits + 1/2, scaled to (0, 1)
    return bits.to(torch.float32).mul_(-_SCALE).sub_(2**-32).log1p_().neg_().log_().neg_()


def token_hashes(vocab_size: int, device: torch.device) -> Tensor:
    """A well-mixed int32 for each token id, [vocab_size]: lowbias32 of the id + 1."""
    ids = torch.arange(1, vocab_size + 1, dtype=torch.int32, device=device)
    for shift, multiplier in zip((16, 15), _MULTIPLIERS, strict=True):
        _fold(ids, shift)
        ids.mul_(multiplier)
    _fold(ids, 15)
    return ids


def _fold(bits: Tensor, shift: int) -> None:
    """bits ^= bits >>> shift, in place; the mask makes the arithmetic shift of int32 a logical one."""
    bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1))
