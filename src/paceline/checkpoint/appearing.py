"""A directory that appears whole or not at all, also when the process is killed.

It is made beside the target in a hidden directory, which a later run for the same target removes if a kill left it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paceline.errors import UserError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def appearing(target: Path, overwrite: bool = False, proof: str = "config.json") -> Iterator[Path]:
    """A fresh directory beside `target` that takes its name when the block ends well, and vanishes when it does not.

    proof: the file that must be in an existing directory for `overwrite` to replace it. Whoever looks at `target` sees
    what was there before or the new directory. Raises UserError when it exists and may not be replaced."""
    check_target(target, overwrite, proof)
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    work, lock = _workplace(target)
    try:
        yield work / "new"
        _put(work / "new", target, work / "old", overwrite)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def check_target(target: Path, overwrite: bool, proof: str) -> None:
    """Raises UserError when `target` exists and `appearing` would not replace it."""
    if not os.path.lexists(target):
        return
    if not target.is_dir() or target.is_symlink():
        raise UserError(f"{target} exists and is no directory: name another output directory.")
    if any(target.iterdir()):
        if not overwrite:
            mend = "name another output directory, or overwrite it (--overwrite)"
            raise UserError(f"{target} exists and is not empty: {mend}.")
        if not (target / proof).is_file():
            raise UserError(
                f"{target} holds something else than a checkpoint to replace (it has no {proof}): "
                "name another output directory."
            )


def check_apart(source: Path, target: Path) -> None:
    """Raises UserError when a directory that is read would be replaced by what is made of it."""
    if source.resolve().is_relative_to(target.resolve()):
        raise UserError(f"{target} is or holds the checkpoint that is read: name another output directory.")


def _put(draft: Path, target: Path, old: Path, overwrite: bool) -> None:
    """`draft` becomes `target`, in one step wherever the system can; what was there becomes `old` (or is left as
    `draft`), for the caller to remove."""
    try:
        if not overwrite:
            draft.rename(target)  # the system refuses it where another run has put something meanwhile
        elif not target.exists() or not _exchange(draft, target):
            _put_in_two_steps(draft, target, old)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UserError(f"{target} has appeared meanwhile: name another output directory.") from None
        raise


def _exchange(one: Path, other: Path) -> bool:
    """The two names change places at once; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _put_in_two_steps(draft: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        draft.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise


def _prefix(target: Path) -> str:
    return f".{target.name}.paceline-"


def _workplace(target: Path) -> tuple[Path, int]:
    """A hidden directory beside `target` with `new` in it, and a lock on it that ends when this process does."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        lock = _lock(work)
        if lock is not None:
            (work / "new").mkdir()  # with the user's own permissions, unlike `work`
            return work, lock


def _lock(directory: Path) -> int | None:
    """A file descriptor that holds it; None when another process does, or has just removed the directory."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if directory.exists():
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _remove_abandoned(target: Path) -> None:
    """What killed runs for this target left. Runs that still go on hold their lock, and keep theirs.

    A kill between the two steps of a replacement left the former directory as `old` and no target: it comes back."""
    for work in target.parent.glob(glob.escape(_prefix(target)) + "*"):
        if work.is_symlink() or not work.is_dir():
            continue
        lock = _lock(work)
        if lock is None:
            continue
        if {path.name for path in work.iterdir()} <= {"new", "old"}:
            if (work / "old").is_dir() and not target.exists():
                (work / "old").rename(target)
            shutil.rmtree(work, ignore_errors=True)
        os.close(lock)
