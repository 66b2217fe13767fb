"""The MTP modules of a full checkpoint as a directory of their own, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.checkpoint.appearing import appearing, check_apart, check_target
from paceline.checkpoint.reader import Checkpoint, TensorInfo
from paceline.convert.export_plan import Copy, ExportPlan
from paceline.convert.export_write import MANIFEST, Advance, file_sum, write_rest, write_tensors
from paceline.convert.stream import forget, pieces
from paceline.errors import UserError
from paceline.garbage import uncollected

SLACK = 64 << 20  # bytes beside the tensors: tokenizer, index, manifest


@uncollected()
def export_mtp(
    plan: ExportPlan,
    target: str | Path,
    *,
    overwrite: bool = False,
    verify: bool = False,
    advance: Advance = lambda _: None,
) -> Path:
    """Writes what `plan` says. verify: reads all of it back and compares it with the source before it appears.

    `advance` is told of plan.total_size bytes, twice with `verify`. An interrupted run leaves nothing; a killed one a
    hidden directory that the next run for this target removes. Raises UserError when `target` may not be replaced
    (`overwrite` replaces earlier exports only), has no room, cannot be written, or differs when it is read back."""
    target = Path(target)
    check_places(plan, target, overwrite)
    try:
        with appearing(target, overwrite, MANIFEST) as draft:
            _check_room(plan, draft)
            sums = write_tensors(draft / plan.file, plan.copies, advance)
            write_rest(draft, plan, sums)
            if verify:
                verify_export(plan, draft, advance)
    except OSError as problem:
        raise UserError(f"The export was given up and {target} left as it was ({problem}): mend that first.") from None
    return target


def check_places(plan: ExportPlan, target: Path, overwrite: bool) -> None:
    """Raises UserError where `export_mtp` would not write: over its own source, or over what is no earlier export."""
    check_apart(plan.source, target)
    check_target(target, overwrite, MANIFEST)


def verify_export(plan: ExportPlan, directory: Path, advance: Advance = lambda _: None) -> None:
    """Every byte of the export against the source, once more from there, and against the manifest's sums.

    Raises UserError that names the first tensor or file that differs."""
    forget(directory / plan.file)
    written, manifest = Checkpoint(directory), json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    names = [copy.name for copy in plan.copies]
    if set(written) != set(names) or set(manifest["tensors"]) != set(names):
        raise UserError(f"{directory} does not hold the tensors of the plan: export again.")
    for copy in sorted(plan.copies, key=Copy.place):
        _compare(copy, written[copy.name], manifest["tensors"][copy.name]["sha256"], advance)
    _compare_files(directory, manifest["files"])


def _compare(copy: Copy, written: TensorInfo, expected_sum: str, advance: Advance) -> None:
    digest = hashlib.sha256()
    same = (written.dtype, written.shape, written.size) == (copy.dtype, copy.info.shape, copy.size)
    with written.file.open("rb", buffering=0) as file:
        file.seek(written.start)
        for piece in pieces(copy.info, copy.scale, copy.dtype) if same else ():
            found = file.read(len(piece))
            digest.update(found)
            same = same and found == bytes(piece)  # views are compared number by number
            advance(len(piece))
    if not same or digest.hexdigest() != expected_sum:
        raise UserError(f"Tensor {copy.name} differs from its source when it is read back: check disk and memory.")


def _compare_files(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, entry in files.items():
        if file_sum(directory / name) != entry["sha256"]:
            raise UserError(f"{directory / name} differs when it is read back: check disk and memory.")


def _check_room(plan: ExportPlan, directory: Path) -> None:
    needed, free = plan.total_size + SLACK, shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory.parents[1]} has {free / 1e9:.1f} GB free and the export needs {needed / 1e9:.1f} GB: "
            "make room, or name another output directory."
        )
