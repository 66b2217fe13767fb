"""Models without memory: names, shapes and dtypes of what a configuration describes, in a moment and at any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def laid_out(dtype: torch.dtype) -> Iterator[None]:
    """Parameters made in this block are on the meta device, of `dtype` unless their layer fixes another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)
