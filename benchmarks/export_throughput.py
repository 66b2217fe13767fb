"""What an export of MTP modules costs: bytes read, peak memory, and its speed as a share of `cp` of the same bytes.

    python benchmarks/export_throughput.py --work DIR [--source CHECKPOINT] [--repeats 5]

Without --source a checkpoint in DeepSeek-V3's layout is made in DIR (61+1 layers, 163 shards, FP8; about 7.5 GB) and
removed at the end. Each round runs, in turn, an export as stored, an export as bfloat16, and `cp` of a file with as
many bytes as the export reads; the figures are medians over the rounds. They run from disk to disk (nothing of the
source is in memory before, everything is on the disk afterwards) and from memory to memory (neither is waited for).

Bytes read are the process's own (`rchar` of /proc/self/io) from planning to the end, against the sizes of the tensors
that are needed. Peak memory is that of the process, Python and torch included. Starting Python is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from make_deepseek_checkpoint import Sizes, make_checkpoint

from paceline.convert.stream import forget

# DeepSeek-V3's layers, experts, vocabulary and names; a seventh of its width.
SIZES = Sizes(
    hidden_size=1024, intermediate_size=2048, moe_intermediate_size=128, num_attention_heads=16, q_lora_rank=384
)  # fmt: skip
WAYS = ("disk", "memory")

# In a process of its own, so that its peak memory is that of the export.
EXPORT = """
import json, resource, sys, time
from pathlib import Path
from paceline.convert.export_mtp import export_mtp
from paceline.convert.export_plan import plan_export
from paceline.convert.stream import forget

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def read():
    return int(Path("/proc/self/io").read_text().split()[1])

source, target, dtype, way = sys.argv[1:]
if way == "disk":
    for file in Path(source).iterdir():
        forget(file)
imported, before, began = peak(), read(), time.perf_counter()
plan = plan_export(source, dtype=dtype)
planned = time.perf_counter() - began
made = export_mtp(plan, target)
after = read()
if way == "disk":
    forget(made / plan.file)
print(json.dumps({
    "seconds": time.perf_counter() - began, "planned": planned, "read": after - before, "needed": plan.bytes_read,
    "written": plan.total_size, "largest": max(copy.size for copy in plan.copies), "peak": peak(), "imported": imported,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory with room for about 10 GB")
    parser.add_argument("--source", type=Path, help="a checkpoint with MTP modules")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    made = args.work / "checkpoint"
    source = args.source or make_checkpoint(made, SIZES)
    try:
        report(source, args.work, args.repeats)
    finally:
        if args.source is None:
            shutil.rmtree(made, ignore_errors=True)


def report(source: Path, work: Path, repeats: int) -> None:
    files = list(source.glob("*.safetensors"))
    print(f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB in {len(files)} files; medians of {repeats}")
    needed = export(source, work / "out", "keep", "memory")["needed"]
    same = make_file(work / "same", needed)
    try:
        for way in WAYS:
            rounds = [one_round(source, same, work, way) for _ in range(repeats)]
            copied = [copy for _, _, copy in rounds]
            print(f"{way} to {way}: cp {needed / 1e6:.0f} MB at {needed / median(copied) / 1e6:.0f} MB/s")
            for number, dtype in enumerate(("keep", "bfloat16")):
                print(line(dtype, [one[number] for one in rounds], copied))
    finally:
        same.unlink()


def one_round(source: Path, same: Path, work: Path, way: str) -> tuple[dict[str, Any], dict[str, Any], float]:
    keep, bfloat16 = (export(source, work / "out", dtype, way) for dtype in ("keep", "bfloat16"))
    return keep, bfloat16, copy(same, work / "copied", way)


def line(dtype: str, runs: list[dict[str, Any]], copied: list[float]) -> str:
    one = runs[0]
    seconds, planned = (median(run[what] for run in runs) for what in ("seconds", "planned"))
    share = median(cp / run["seconds"] for run, cp in zip(runs, copied, strict=True))
    allowed = 2 * one["largest"] + 200e6
    return (
        f"  {dtype:9} {one['needed'] / seconds / 1e6:5.0f} MB/s, {share:.2f} of cp (planning {planned:.2f} of "
        f"{seconds:.2f} s); read {one['read'] / one['needed']:.4f} of what is needed, wrote "
        f"{one['written'] / 1e6:.0f} MB; peak {max(run['peak'] for run in runs) / 1e6:.0f} MB "
        f"({one['imported'] / 1e6:.0f} MB after the imports; 2 x the largest + 200 MB are {allowed / 1e6:.0f} MB)"
    )


def export(source: Path, target: Path, dtype: str, way: str) -> dict[str, Any]:
    command = [sys.executable, "-c", EXPORT, str(source), str(target), dtype, way]
    told: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    shutil.rmtree(target)
    return told


def copy(source: Path, target: Path, way: str) -> float:
    if way == "disk":
        forget(source)
    began = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    if way == "disk":
        forget(target)
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def make_file(file: Path, size: int) -> Path:
    piece = os.urandom(1 << 20)
    with file.open("wb") as out:
        for start in range(0, size, len(piece)):
            out.write(piece[: size - start])
    return file


if __name__ == "__main__":
    main()
