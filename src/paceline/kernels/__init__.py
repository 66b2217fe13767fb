"""Attention kernels; which one runs is decided here, once, by device and dtype. All have the reference's signature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paceline.kernels import cpu, reference

AttendRows = Callable[[Tensor, list[Tensor], list[Tensor], Tensor, float], Tensor]


def attend_rows_for(device: torch.device) -> AttendRows:
    """The kernel for `device`;
    its views-and-products form suits any device that torch knows until a better one exists."""
    return cpu.attend_rows if device.type in ("cpu", "cuda") else reference.attend_rows
