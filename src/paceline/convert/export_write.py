"""The files of an export: tensors in one pass from disk to disk, index, configuration, what travels along, manifest.

The same plan gives the same bytes, wherever and whenever.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

from paceline import __version__
from paceline.checkpoint.reader import INDEX
from paceline.convert.export_plan import Copy, ExportPlan
from paceline.convert.rawfile import Entry, Writing, header
from paceline.convert.stream import pieces

MOST_BEHIND = 8  # pieces
MANIFEST = "mtp_manifest.json"
Advance = Callable[[int], None]  # told how many bytes have been written (or compared) since the last call


def write_tensors(file: Path, copies: Sequence[Copy], advance: Advance) -> dict[str, str]:
    """One safetensors file; tensor name to the sha256 of its bytes.

    One pass, in the order of the source: a second thread makes the sums, at most a few pieces behind the one that reads
    and writes. The disk is given its work early, and nothing waits for it here."""
    sums = {copy.name: hashlib.sha256() for copy in copies}
    behind: deque[Future[None]] = deque()
    with file.open("xb", buffering=0) as opened, ThreadPoolExecutor(1) as hasher:
        out = Writing(opened)
        head = header(Entry(copy.name, copy.dtype, copy.info.shape, copy.size) for copy in copies)
        starts = dict(zip(copies, accumulate((copy.size for copy in copies), initial=len(head)), strict=False))
        out.write(memoryview(head))
        for copy in sorted(copies, key=Copy.place):
            opened.seek(starts[copy])
            for piece in pieces(copy.info, copy.scale, copy.dtype):
                behind.append(hasher.submit(sums[copy.name].update, piece))
                out.write(piece)
                if len(behind) > MOST_BEHIND:
                    behind.popleft().result()
                advance(len(piece))
    return {name: digest.hexdigest() for name, digest in sums.items()}


def write_rest(directory: Path, plan: ExportPlan, sums: dict[str, str]) -> None:
    """All but the tensors: index, config.json, tokenizer and generation settings, and the manifest of it all."""
    weight_map = {copy.name: plan.file for copy in plan.copies}
    _write_json(directory / INDEX, {"metadata": {"total_size": plan.total_size}, "weight_map": weight_map})
    _write_json(directory / "config.json", plan.draft_config)
    for file in plan.travelling:
        shutil.copyfile(file, directory / file.name)
    _write_json(directory / MANIFEST, manifest(directory, plan, sums))


def manifest(directory: Path, plan: ExportPlan, sums: dict[str, str]) -> dict[str, Any]:
    """What was made of what: enough to check an export without its source, and to make it again."""
    tensors = {
        copy.name: {
            "dtype": copy.dtype,
            "shape": list(copy.info.shape),
            "bytes": copy.size,
            "sha256": sums[copy.name],
            "source": {"tensor": copy.source, "dtype": copy.info.dtype, "file": copy.info.file.name},
        }
        for copy in plan.copies
    }
    others = sorted(path for path in directory.iterdir() if path.name != plan.file)
    return {
        "paceline": __version__,
        "source": {"directory": str(plan.source.resolve()), "config_sha256": file_sum(plan.source / "config.json")},
        "choices": {"layout": plan.layout, "dtype": plan.dtype, "shared": plan.shared},
        "modules": plan.config.num_nextn_predict_layers,
        "total_size": plan.total_size,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_sum(path)} for path in others},
        "tensors": tensors,
    }


def file_sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
