"""Products of FP8 weights with FP8 activations on the GPUs whose libraries multiply them: DeepSeek-V3's recipe
(technical report, section 3.3), by torch's own scaled product (cuBLAS).

Everywhere else a weight is dequantised and the activations stay as they are (`reference.quantised_linear`).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.formats import BLOCK, FP8_MOST, quantise_activations
from paceline.kernels import reference

ROWS = 128  # of each call, filled up with zeros: cuBLAS chooses its way by shape, so a row always goes the same one


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` takes these: bfloat16 on such a device, whole groups of inputs, whole vectors of outputs."""
    if not x.is_cuda or x.dtype != torch.bfloat16 or weight.dtype != torch.float8_e4m3fn:
        return False
    outputs, inputs = weight.shape
    return inputs % BLOCK == 0 and outputs % 16 == 0 and multiplies(x.device)


@cache
@torch.inference_mode()
def multiplies(device: torch.device) -> bool:
    """Whether torch multiplies so on this device, and rightly: tried once, on a small product. It depends on the device
    (compute capability 9, as of torch 2.13) and on the libraries that torch was built with (CUDA 12.9)."""
    x = torch.linspace(-3, 2, 5 * 2 * BLOCK, device=device).view(5, -1).to(torch.bfloat16)
    codes = torch.linspace(-FP8_MOST, FP8_MOST, 48 * 2 * BLOCK, device=device).view(48, -1).to(torch.float8_e4m3fn)
    scale = torch.linspace(0.001, 0.003, 48 * 2, device=device).view(48, 2)
    try:
        found = linear(x, codes, scale, None, powers=False)
    except (RuntimeError, ValueError):
        return False
    expected = reference.activations_too(x, codes, scale, None, powers=False)
    return torch.allclose(found, expected, rtol=2**-5, atol=2**-6 * float(expected.abs().max()))


def linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, powers: bool) -> Tensor:
    """As `reference.activations_too`; x bfloat16."""
    scale = by_group(scale)
    parts = [_tile(part, weight, scale, powers) for part in x.split(ROWS)]
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y if bias is None else y + bias


def _tile(x: Tensor, weight: Tensor, scale: Tensor, powers: bool) -> Tensor:
    """At most ROWS rows; the scales of the weight by row, group after group in memory."""
    codes, factors = quantise_activations(F.pad(x, (0, 0, 0, ROWS - len(x))), powers)
    grain = F.ScalingType.BlockWise1x128  # for the weight too: a row of a merged weight may begin within a block
    y: Tensor = F.scaled_mm(codes, weight.t(), by_group(factors), grain, scale, grain, output_dtype=x.dtype)
    return y[: len(x)]


def by_group(scale: Tensor) -> Tensor:
    """[rows, groups] with the rows of a group side by side in memory, as cuBLAS reads them."""
    return scale.t().contiguous().t()
