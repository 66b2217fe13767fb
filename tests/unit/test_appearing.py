"""A directory appears whole or not at all, and what killed runs left is cleaned up, that of running ones is not."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from paceline.checkpoint import appearing as module
from paceline.checkpoint.appearing import appearing
from paceline.errors import UserError


def make(target: Path, text: str, overwrite: bool = False) -> None:
    with appearing(target, overwrite) as draft:
        (draft / "config.json").write_text(text)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def left_by_a_kill(target: Path, *parts: str) -> Path:
    work = target.parent / f".{target.name}.paceline-abc"
    work.mkdir()
    for part in parts:
        (work / part).mkdir()
        (work / part / "config.json").write_text(part)
    return work


@pytest.fixture(params=[True, False], ids=["exchange", "two steps"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where file systems can exchange two names, and where they cannot."""
    if not request.param:
        monkeypatch.setattr(module, "_exchange", lambda *_: False)
    return tmp_path / "out"


def test_it_appears_is_replaced_and_leaves_no_trace(target: Path) -> None:
    make(target, "one")
    make(target, "two", overwrite=True)
    assert (target / "config.json").read_text() == "two" and names(target.parent) == ["out"]
    with pytest.raises(UserError, match="not empty"):
        make(target, "three")
    assert names(target.parent) == ["out"]


def test_an_empty_directory_is_filled(target: Path) -> None:
    target.mkdir()
    make(target, "one")
    assert names(target) == ["config.json"]


def test_a_failure_leaves_what_was_there(target: Path) -> None:
    make(target, "one")
    with pytest.raises(ZeroDivisionError), appearing(target, overwrite=True) as draft:
        (draft / "config.json").write_text("two")
        raise ZeroDivisionError
    assert (target / "config.json").read_text() == "one" and names(target.parent) == ["out"]


def test_the_exchange_is_used_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it there is no moment without a target."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").touch()
    if not module._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange names")
    assert names(tmp_path / "a") == [] and names(tmp_path / "b") == ["x"]
    monkeypatch.setattr(module, "_put_in_two_steps", None)
    make(tmp_path / "out", "one")
    make(tmp_path / "out", "two", overwrite=True)
    assert (tmp_path / "out" / "config.json").read_text() == "two"


def test_two_runs_for_one_target(target: Path) -> None:
    """The second to end is refused, and the first one's result stays."""
    with pytest.raises(UserError, match="appeared meanwhile"), appearing(target) as draft:
        (draft / "config.json").write_text("late")
        make(target, "early")
    assert (target / "config.json").read_text() == "early" and names(target.parent) == ["out"]


def test_a_failed_second_step_brings_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "out", "one")
    monkeypatch.setattr(module, "_exchange", lambda *_: False)
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if self.name == "new":
            raise OSError("no luck")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no luck"):
        make(tmp_path / "out", "two", overwrite=True)
    assert (tmp_path / "out" / "config.json").read_text() == "one" and names(tmp_path) == ["out"]


# What kills left


@pytest.mark.parametrize("parts", [[], ["new"]])
def test_what_a_killed_run_left_is_removed(target: Path, parts: list[str]) -> None:
    left_by_a_kill(target, *parts)
    make(target, "one")
    assert names(target.parent) == ["out"]


def test_a_replacement_killed_between_its_steps_is_undone(target: Path) -> None:
    left_by_a_kill(target, "new", "old")
    with pytest.raises(UserError, match=r"meanwhile|not empty"):
        make(target, "one")
    assert (target / "config.json").read_text() == "old"
    make(target, "one", overwrite=True)
    assert names(target.parent) == ["out"]


def test_what_a_running_one_makes_is_left_alone(target: Path) -> None:
    work = left_by_a_kill(target, "new")
    held = os.open(work, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    make(target, "one")
    assert (work / "new" / "config.json").exists()
    os.close(held)
    make(target, "two", overwrite=True)
    assert names(target.parent) == ["out"]


def test_a_workplace_taken_for_abandoned_is_made_again(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run may remove it before it is locked."""
    lock, calls = module._lock, []

    def late(directory: Path) -> int | None:
        calls.append(directory)
        if len(calls) == 1:
            directory.rmdir()
        return lock(directory)

    monkeypatch.setattr(module, "_lock", late)
    make(target, "one")
    assert len(calls) == 2 and names(target.parent) == ["out"]


def test_strangers_with_such_names_are_left_alone(target: Path) -> None:
    others = [".out.backup", ".out.paceline-notes", ".out2.paceline-abc"]
    for name in others:
        (target.parent / name / "new").mkdir(parents=True)
    (target.parent / ".out.paceline-notes" / "mine").touch()
    (target.parent / ".out.paceline-link").symlink_to(target.parent / ".out.backup")
    make(target, "one")
    assert names(target.parent) == sorted([*others, ".out.paceline-link", "out"])
    assert (target.parent / ".out.backup" / "new").is_dir()
