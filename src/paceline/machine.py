"""What this machine is, in words that tell it from others."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """As the system calls it; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
