"""What an export of MTP modules costs: bytes read, peak memory, and its speed as a share of `cp` of the same bytes.

    python benchmarks/export_throughput.py --work DIR [--source CHECKPOINT] [--repeats 5]

Without --source a checkpoint in DeepSeek-V3's layout is made in DIR (61+1 layers, 163 shards, FP8; about 6 GB) and
removed at the end. Each round runs, in turn, an export as stored, an export as bfloat16, and `cp` of a file with the
bytes that the export reads; speeds are bytes read by the second, the shares are medians over the rounds. Bytes read
are the process's own `rchar` of /proc/self/io during the export, against the sizes of the tensors that are needed.
The sources are read once before, so that all sides read from memory. An export ends when its bytes are on the disk;
`cp` ends before, and again, in the second figure, with `sync` of its copy.
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

# DeepSeek-V3's layers, experts, vocabulary and names; a seventh of its width.
SIZES = Sizes(
    hidden_size=1024, intermediate_size=2048, moe_intermediate_size=128, num_attention_heads=16, q_lora_rank=384
)  # fmt: skip

# In a process of its own, so that its peak memory is that of the export.
EXPORT = """
import json, resource, sys, time
from pathlib import Path
from paceline.checkpoint.export_mtp import export_mtp
from paceline.checkpoint.export_plan import plan_export

def read():
    return int(Path("/proc/self/io").read_text().split()[1])

source, target, dtype = sys.argv[1:]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
import paceline.checkpoint.export_plan
imported = peak()
before, began = read(), time.perf_counter()
plan = plan_export(source, dtype=dtype)
export_mtp(plan, target)
print(json.dumps({
    "seconds": time.perf_counter() - began, "read": read() - before, "needed": plan.bytes_read,
    "written": plan.total_size, "largest": max(copy.size for copy in plan.copies),
    "peak": peak(), "imported": imported, "tensors": len(plan.copies),
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
    first = export(source, work / "out", "keep")
    bytes_file = make_file(work / "bytes", first["needed"])
    rounds = []
    try:
        for _ in range(repeats):
            keep, bf16 = (export(source, work / "out", dtype) for dtype in ("keep", "bfloat16"))
            rounds.append({"keep": keep, "bfloat16": bf16, "cp": copy(bytes_file, work / "copied")})
    finally:
        bytes_file.unlink()
    total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    print(f"checkpoint {total / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} files; {repeats} rounds")
    cp = median(one["cp"] for one in rounds)
    print(f"cp        {first['needed'] / cp / 1e6:7.0f} MB/s of {first['needed'] / 1e6:.0f} MB")
    for dtype in ("keep", "bfloat16"):
        print(line(dtype, [one[dtype] for one in rounds], [one["cp"] for one in rounds]))


def line(dtype: str, runs: list[dict[str, Any]], copies: list[float]) -> str:
    one = runs[0]
    share = median(cp / run["seconds"] for run, cp in zip(runs, copies, strict=True))
    allowed = 2 * one["largest"] + 200e6
    return (
        f"{dtype:9} {one['needed'] / median(run['seconds'] for run in runs) / 1e6:7.0f} MB/s, {share:.2f} of cp; "
        f"read {one['read'] / one['needed']:.4f} of what is needed, wrote {one['written'] / 1e6:.0f} MB; "
        f"peak {one['peak'] / 1e6:.0f} MB ({one['imported'] / 1e6:.0f} MB after the imports), "
        f"allowed {allowed / 1e6:.0f} MB, largest tensor {one['largest'] / 1e6:.0f} MB"
    )


def export(source: Path, target: Path, dtype: str) -> dict[str, Any]:
    command = [sys.executable, "-c", EXPORT, str(source), str(target), dtype]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    shutil.rmtree(target)
    return json.loads(told)


def make_file(file: Path, size: int) -> Path:
    piece = os.urandom(1 << 20)
    with file.open("wb") as out:
        for start in range(0, size, len(piece)):
            out.write(piece[: size - start])
    return file


def copy(source: Path, target: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


if __name__ == "__main__":
    main()
