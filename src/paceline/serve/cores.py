"""Which cores belong to the engine and which to the web process, on a machine whose processor runs the model.

Left to itself the kernel wakes the web process on the core of whoever wrote to it: in the middle of the engine's next
step, which then waits. So each process keeps to cores of its own, as soon as there are more than the engine's threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TASKS = Path("/proc/self/task")


def available() -> list[int]:
    """The cores that this process may run on; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and _TASKS.exists() else []


def engine_threads(cores: int) -> int | None:
    """How many threads compute when nobody says: of more than two cores one is left to the web process; None: torch's
    own choice. Of two, the engine gains more from the second than the web process takes from it."""
    return cores - 1 if cores > 2 else None


def shared_out(cores: list[int], threads: int) -> tuple[list[int], list[int]]:
    """The engine's cores and the web process's; both empty when there are not enough for two.

    Example: cores 0 to 3 and 3 threads are ([0, 1, 2], [3])."""
    return (cores[:threads], cores[threads:]) if threads < len(cores) else ([], [])


def keep_to(cores: Iterable[int]) -> None:
    """Binds all threads of this process, and those to come; no cores: nothing happens. Where it is not allowed, it is
    only slower."""
    wanted = set(cores)
    for task in _TASKS.iterdir() if wanted else ():
        with suppress(OSError):  # a thread that has ended meanwhile
            os.sched_setaffinity(int(task.name), wanted)
