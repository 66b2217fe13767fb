"""Kills exports at random moments and prints what each left at the target. Run by test_export_kills, as a process of
its own: it forks, which a process with threads must not.

    python export_kills.py SOURCE TARGET ROUNDS SEED

In every other round there is an earlier export to replace. Prints one JSON line a round: {"before": "absent" | "old",
"left": "absent" | "old" | "new" | "half", "killed": whether it was still running}.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from paceline.convert.export_mtp import export_mtp, verify_export
from paceline.convert.export_plan import ExportPlan, plan_export
from paceline.errors import UserError


def main() -> None:
    source, target, rounds, seed = sys.argv[1:]
    old, new, out = plan_export(source, "sglang"), plan_export(source, "xllm", "keep"), Path(target)
    moments = random.Random(int(seed))
    longest = min(killed_after(new, out, None) for _ in range(2))
    for number in range(int(rounds)):
        shutil.rmtree(out, ignore_errors=True)
        if number % 2:
            export_mtp(old, out)
        taken = killed_after(new, out, moments.uniform(0, longest))
        left = what_is_there(out, {"old": old, "new": new})
        print(json.dumps({"before": ("absent", "old")[number % 2], "left": left, "killed": taken < 0}))


def killed_after(plan: ExportPlan, target: Path, seconds: float | None) -> float:
    """Seconds an export took in a process of its own; -1 if it was killed before it ended. None: it is let be."""
    began = time.perf_counter()
    process = os.fork()
    if process == 0:
        export_mtp(plan, target, overwrite=True)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return -1.0 if os.WIFSIGNALED(status) else time.perf_counter() - began


def what_is_there(target: Path, plans: dict[str, ExportPlan]) -> str:
    if not target.exists():
        return "absent"
    for name, plan in plans.items():
        try:
            verify_export(plan, target)
            return name
        except (UserError, OSError):
            continue
    return "half"


if __name__ == "__main__":
    main()
