"""The device that a user means."""

from __future__ import annotations

import torch

from paceline.errors import UserError


def choose_device(name: str | None = None) -> torch.device:
    """None or `auto`: cuda if there is one, else cpu. Raises `UserError` for a device that is unknown or not here."""
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # torch asserts where it was built without CUDA
        raise UserError(f"There is no device {name!r} here; use cpu, cuda, cuda:N or auto.") from None
    return device
