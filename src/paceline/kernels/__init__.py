"""Kernels. Which code runs is decided here and in `cpu`, by device and dtype; all have the reference's signature.

`cpu` is plain torch where nothing better serves, so that it is right on any device."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from paceline.kernels import heads, latent, mla, native
from paceline.kernels.cpu import (
    PIECE,
    attend_rows,
    best_of,
    best_token,
    gated,
    gumbel,
    norm_pairs,
    quantised_linear,
    rms_norm,
    rotate_and_norm,
    route,
    router_scores,
    rowwise,
)
from paceline.kernels.linear import pack_weight, packed_linear
from paceline.kernels.reference import Sight, rotate, token_hashes

AttendRows = Callable[[Tensor, list[Tensor], list[Tensor], Sight, float], Tensor]

__all__ = [
    "PIECE",
    "AttendRows",
    "Sight",
    "attend_rows",
    "best_of",
    "best_token",
    "gated",
    "gumbel",
    "heads",
    "latent",
    "mla",
    "native",
    "norm_pairs",
    "pack_weight",
    "packed_linear",
    "quantised_linear",
    "rms_norm",
    "rotate",
    "rotate_and_norm",
    "route",
    "router_scores",
    "rowwise",
    "token_hashes",
]
