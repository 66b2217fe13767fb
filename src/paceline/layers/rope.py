"""Rotary positions, with the scalings that public checkpoints use: none, linear, llama3, yarn.

Sources: RoPE (Su et al. 2021); YaRN (Peng et al. 2023);
the Hugging Face field names `rope_theta`, `rope_scaling`, `rope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paceline.errors import UserError
from paceline.kernels import rotate


def rope_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary from either spelling of config.json: the classic two fields or the newer `rope_parameters`."""
    merged: dict[str, Any] = {"rope_theta": raw.get("rope_theta", 10000.0)}
    if raw.get("partial_rotary_factor") is not None:
        merged["partial_rotary_factor"] = raw["partial_rotary_factor"]
    for name in ("rope_scaling", "rope_parameters"):
        merged.update(raw.get(name) or {})
    merged["rope_type"] = merged.get("rope_type") or merged.get("type") or "default"
    merged.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    return merged


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """0.1 * mscale * ln(factor) + 1 for factor > 1 (YaRN, equation 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


class Rope(nn.Module):
    """cos and sin for positions. `interleaved`: pairs are (0,1), (2,3), ...
    as DeepSeek stores them, else (i, i + dim/2)."""

    def __init__(self, dim: int, parameters: Mapping[str, Any], max_positions: int, interleaved: bool = False) -> None:
        super().__init__()
        self.max_positions = max_positions
        self._table: Tensor | None = None
        inverse, self.scale = inverse_frequencies(dim, parameters)
        self.interleaved = interleaved
        self.register_buffer("inverse", inverse, persistent=False)
        self.inverse: Tensor

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T] to cos, sin [T, 1, dim/2] in float32. Positions beyond the context or below 0 mean nothing."""
        places = positions.clamp(0, self.max_positions - 1)
        cos, sin = self.table(positions.device).index_select(1, places).unsqueeze(-2).unbind(0)
        return cos, sin

    def table(self, device: torch.device) -> Tensor:
        """cos and sin of every position, [2, max_positions, dim/2]. Made once, so that a position has the same bits in
        every pass: vectorised cos and sin differ in the last bit from the scalar ones that finish a row."""
        if self._table is None or self._table.device != device:
            with torch.inference_mode(False):  # it outlives this pass, and a later one may train
                places = torch.arange(self.max_positions, dtype=torch.float32, device="cpu")
                angles = places[:, None] * self.inverse.cpu()
                self._table = (torch.stack((angles.cos(), angles.sin())) * self.scale).to(device)
        return self._table

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [T, heads, dim or more] to the same shape: the first `dim` numbers of each head rotated, the rest as it is.
        Interleaved pairs come out de-interleaved, for q and k alike."""
        dim = 2 * cos.shape[-1]
        if dim == x.shape[-1]:
            return rotate(x, cos, sin, self.interleaved)
        return torch.cat((rotate(x[..., :dim], cos, sin, self.interleaved), x[..., dim:]), dim=-1)


def inverse_frequencies(dim: int, parameters: Mapping[str, Any]) -> tuple[Tensor, float]:
    """1 / theta^(2i/dim), scaled as `rope_type` says, [dim/2] float32; and the factor on cos and sin.

    Computed on the CPU also where a model is laid out on the meta device: no checkpoint holds these numbers."""
    theta = float(parameters["rope_theta"])
    inverse = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    kind = parameters["rope_type"]
    if kind == "default":
        return inverse, 1.0
    if kind == "linear":
        return inverse / float(parameters["factor"]), 1.0
    if kind == "llama3":
        return _llama3(inverse, parameters), 1.0
    if kind == "yarn":
        return _yarn(inverse, dim, theta, parameters)
    raise UserError(f"rope_type {kind!r} is not known; this version reads default, linear, llama3 and yarn.")


def _llama3(inverse: Tensor, p: Mapping[str, Any]) -> Tensor:
    """Long wavelengths are divided by `factor`, short ones kept, those between are blended (Llama 3.1)."""
    low, high = float(p["low_freq_factor"]), float(p["high_freq_factor"])
    wavelength = 2 * math.pi / inverse
    share = ((p["original_max_position_embeddings"] / wavelength - low) / (high - low)).clamp(0, 1)
    blended: Tensor = (1 - share) * inverse / float(p["factor"]) + share * inverse
    return blended


def _yarn(inverse: Tensor, dim: int, theta: float, p: Mapping[str, Any]) -> tuple[Tensor, float]:
    factor, original = float(p["factor"]), int(p["original_max_position_embeddings"])

    def place(rotations: float) -> float:  # the dimension that turns `rotations` times over the original context
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(float(p.get("beta_fast") or 32)), place(float(p.get("beta_slow") or 1))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    scaled = inverse / factor * ramp + inverse * (1 - ramp)
    if p.get("attention_factor") is not None:
        return scaled, float(p["attention_factor"])
    if p.get("mscale") and p.get("mscale_all_dim"):
        return scaled, yarn_mscale(factor, p["mscale"]) / yarn_mscale(factor, p["mscale_all_dim"])
    return scaled, yarn_mscale(factor)
