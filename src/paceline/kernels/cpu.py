"""The kernels for the CPU: compiled code where it serves, else torch; the same bits for a row whatever runs beside it.

Why attention is row-invariant: oneDNN's bf16 products give a row the same bits at any row count; more keys only add
columns; columns that are not seen weigh exactly 0; and the product with the values runs over fixed pieces of the
context (at most `PIECE` keys: longer sums are blocked differently), added in order in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.kernels import fp8, native, reference
from paceline.kernels.reference import Sight

PIECE = 512
GRAIN = 32768  # elements below which torch does not divide an elementwise operation between threads


def attend_rows(q: Tensor, keys: list[Tensor], values: list[Tensor], sight: Sight, scale: float) -> Tensor:
    """As `reference.attend_rows`; every piece but the last holds PIECE keys."""
    rows, heads, _ = q.shape
    kv_heads = keys[0].shape[1]
    q = (q if scale == 1 else q * scale).view(rows, kv_heads, heads // kv_heads, -1)
    fold = _fold_one if kv_heads == 1 else _fold_many
    pieces = [fold(q, k.permute(1, 2, 0)) for k in keys]
    scores = softmax(pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1), sight)
    if len(values) == 1:
        out = fold(scores, values[0].transpose(0, 1))
    else:
        parts = scores.split(PIECE, dim=-1)
        total = fold(parts[0], values[0].transpose(0, 1)).to(torch.float32)
        for part, value in zip(parts[1:], values[1:], strict=True):
            total += fold(part, value.transpose(0, 1))
        out = total.to(q.dtype)
    return out.reshape(rows, heads, -1)


def softmax(scores: Tensor, sight: Sight) -> Tensor:
    """scores [m, Hkv, G, W], which may be overwritten, to probabilities of what each row sees.

    Which way is taken must not depend on the row count: of one row any layout is contiguous."""
    if sight.tree is None and native.serves(scores):
        scores = scores.contiguous()
        native.causal_softmax(scores.flatten(1, 2), sight.context, sight.first)
        return scores
    return scores.masked_fill_(sight.hidden[:, None, None], float("-inf")).softmax(-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`."""
    if x.dim() == 2 and native.serves(x, weight):
        return native.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def norm_pairs(
    tokens: Tensor, table: Tensor, states: Tensor, weights: tuple[Tensor, Tensor], eps: float, states_first: bool
) -> Tensor:
    """As `reference.norm_pairs`."""
    if native.serves(table, states, *weights):
        return native.norm_pairs(tokens, table, states.contiguous(), weights, eps, states_first)
    return reference.norm_pairs(tokens, table, states, weights, eps, states_first)


def best_token(scores: Tensor) -> Tensor:
    """As `reference.best_token`."""
    return native.best_token(scores.contiguous()) if native.serves(scores) else reference.best_token(scores)


def best_of(scores: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.best_of`."""
    return native.best_of(scores.contiguous()) if native.serves(scores) else reference.best_of(scores)


def gumbel(keys: Tensor, hashes: Tensor) -> Tensor:
    """As `reference.gumbel`."""
    here = keys.is_cpu and native.library() is not None
    return native.gumbel(keys, hashes) if here else reference.gumbel(keys, hashes)


def rotate_and_norm(made: Tensor, cos: Tensor, sin: Tensor, weight: Tensor, eps: float) -> None:
    """As `reference.rotate_and_norm`; made contiguous."""
    serves = native.serves(made, weight) and cos.shape[-1] <= native.MAX_HALF_ROPE
    (native if serves else reference).rotate_and_norm(made, cos.contiguous(), sin.contiguous(), weight, eps)


def route(x: Tensor, weight: Tensor, bias: Tensor, top: int, normalise: bool, scaling: float) -> Tensor:
    """As `reference.route`."""
    if native.serves(x, weight) and bias.dtype == torch.float32 and len(weight) <= native.MAX_EXPERTS:
        return native.route(x.contiguous(), weight, bias, top, normalise, scaling)
    return reference.shares_of(router_scores(x, weight), bias, top, normalise, scaling)


def router_scores(x: Tensor, weight: Tensor, scoring: str = "sigmoid") -> Tensor:
    """sigmoid or softmax of x W^T in float32, [T, hidden] by [E, hidden] to [T, E].

    A float32 product depends on the row count below 8 rows on the CPU, and a sigmoid at the end of a tensor goes
    through scalar code; padding to 32 rows makes a row's scores its own. A softmax is taken row by row anyway."""
    padded = F.pad(x.to(torch.float32), (0, 0, 0, -len(x) % 32))
    logits = F.linear(padded, weight.to(torch.float32))
    return (logits.softmax(-1) if scoring == "softmax" else rowwise(torch.sigmoid, logits))[: len(x)]


def gated(gate_up: Tensor, shares: Tensor | None = None, width: int = 0) -> Tensor:
    """As `reference.gated`."""
    if gate_up.dim() == 2 and native.serves(gate_up):
        return native.gated(gate_up.contiguous(), shares, width)
    inner = rowwise(lambda x: reference.gated(x, None, 0), gate_up)
    return inner if shares is None else reference.shared_out(inner, shares, width)


def quantised_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, powers: bool = False
) -> Tensor:
    """As `reference.quantised_linear`, or `activations_too` where the device multiplies FP8 itself. Of weights
    [out, in] in int8 torch has its own kernel for the CPU, which wants whole vectors and reads a row's weights no
    faster than bf16 ones: it stands in where `native` has none."""
    if fp8.serves(x, weight):
        return fp8.linear(x, weight, scale, bias, powers)
    if weight.dtype != torch.int8:
        return one_as_two(partial(reference.quantised_linear, weight=weight, scale=scale, bias=bias), x)
    if native.multiplies_int8(x):
        return native.int8_linear(x.contiguous(), weight, scale, bias)
    factor = scale.flatten().to(x.dtype)
    if x.is_cpu and x.dtype == torch.bfloat16 and x.shape[1] % 16 == 0:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), weight, factor)
    else:
        y = one_as_two(lambda rows: F.linear(rows, weight.to(x.dtype)) * factor, x)
    return y if bias is None else y + bias


def one_as_two(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A product of x [rows, n], where oneDNN may sum a single row in another order than one among others."""
    return product(x.expand(2, -1).contiguous())[:1] if len(x) == 1 and x.is_cpu else product(x)


def rowwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function of x [rows, n] such that a row has the same bits among any others.

    On the CPU a large tensor is cut between threads anywhere, and what does not fill a vector at a cut goes through
    scalar code, whose exp differs in the last bit. Pieces of whole rows below torch's grain size are not cut. Training,
    which asks for no such thing, takes the plain way."""
    if x.numel() <= GRAIN or x.device.type != "cpu" or torch.is_grad_enabled():
        return function(x)
    return torch.cat([function(part) for part in x.split(max(1, GRAIN // x.shape[-1]))])


def _fold_one(x: Tensor, y: Tensor) -> Tensor:
    """x [m, 1, G, D] times y [1, D, N] to [m, 1, G, N]: one plain product."""
    return (x.flatten(0, 2) @ y[0]).view(*x.shape[:3], -1)


def _fold_many(x: Tensor, y: Tensor) -> Tensor:
    """x [m, Hkv, G, D] times y [Hkv, D, N] to [m, Hkv, G, N]: one product a key head."""
    rows, kv_heads, groups, _ = x.shape
    folded = x.transpose(0, 1).reshape(kv_heads, rows * groups, -1) @ y
    return folded.view(kv_heads, rows, groups, -1).transpose(0, 1)
