"""The table of costs for an engine that was just built, from the disk or measured now, and what was learned beyond."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import paceline
from paceline.config import EngineConfig
from paceline.engine.cost_cache import Learned, cached_table
from paceline.engine.engine import Engine
from paceline.engine.measure import Measuring
from paceline.machine import processor_name
from paceline.spec.cost import CostTable

# What of an engine's configuration a step's time depends on.
_MODULES = ("mtp_modules", "draft_model", "draft_quantization", "draft_window")
_OPTIONS = ("drafter", *_MODULES, "ngram_max", "max_num_seqs", "block_size")


def step_costs(
    engine: Engine, config: EngineConfig, model: torch.nn.Module, path: Path, most: int
) -> tuple[CostTable, Learned]:
    """Of at most `most` drafts for each of the requests that `config` allows. model: the target, from `path`."""
    about = {
        "model": _identity(path),
        "bytes": _bytes_by_dtype(model),
        "machine": _machine(model),
        "most": most,
        "room": [engine.scheduler.max_model_len, engine.scheduler.allocator.num_blocks],
        **{name: getattr(config, name) for name in _OPTIONS},
    }
    return cached_table(about, lambda: Measuring(engine, most, config.max_num_seqs).table()), Learned(about)


def _identity(path: Path) -> list[Any]:
    """Costs depend on a model's shape, not on its numbers."""
    text = (path / "config.json").read_bytes()
    sizes = sorted((file.name, file.stat().st_size) for file in path.glob("*.safetensors"))
    return [hashlib.sha256(text).hexdigest(), sizes]


def _bytes_by_dtype(model: torch.nn.Module) -> dict[str, int]:
    """They tell dtype and quantisation."""
    found: Counter[str] = Counter()
    for tensor in model.state_dict().values():
        found[str(tensor.dtype)] += tensor.numel() * tensor.element_size()
    return dict(found)


def _machine(model: torch.nn.Module) -> list[Any]:
    """Processor, threads, device and versions; the sources' own age, for those who change them."""
    device = next(iter(model.state_dict().values())).device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    package = Path(paceline.__file__).parent
    newest = max(file.stat().st_mtime_ns for ending in ("py", "c") for file in package.rglob(f"*.{ending}"))
    versions = [paceline.__version__, newest, torch.__version__, platform.python_version()]
    return [processor_name(), torch.get_num_threads(), gpu or str(device), versions]
