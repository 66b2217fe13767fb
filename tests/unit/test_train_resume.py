"""A run that is saved and resumed goes on with the very numbers of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_tools import packed, trainer

from paceline.errors import UserError


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resumed_run_equals_uninterrupted(tmp_path: Path, optimizer: str) -> None:
    whole, first, second = (trainer(optimizer=optimizer) for _ in range(3))
    losses = [whole.step().loss for _ in range(6)]
    assert [first.step().loss for _ in range(3)] == losses[:3]
    first.save(tmp_path / "state")
    second.resume(tmp_path / "state")
    assert [second.step().loss for _ in range(3)] == losses[3:]
    wanted, found = whole._tensors(), second._tensors()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_micro_batches_give_the_same_update() -> None:
    one, many = trainer(dtype="float32"), trainer(dtype="float32", micro_tokens=32)
    for _ in range(2):
        a, b = one.step(), many.step()
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_tokens": 64}, "batch_tokens"),
        ({"data": packed(repeat={"a": 2})}, "data"),
        ({"optimizer": "adamw"}, "model or optimizer"),
        ({"shape": {"intermediate_size": 64}}, "model or optimizer"),
    ],
    ids=["seed", "batch_tokens", "data", "optimizer", "shape"],
)
def test_another_run_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    trainer().save(tmp_path / "state")
    with pytest.raises(UserError, match=said):
        trainer(**changes).resume(tmp_path / "state")


def test_a_later_stage_may_count_other_tokens(tmp_path: Path) -> None:
    trainer().save(tmp_path / "state")
    later = trainer(data=packed(answers_only=True))
    later.resume(tmp_path / "state")
    assert later.step().step == 1


def test_a_state_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while saving leaves the state before; one between the two renames leaves it under its other name."""
    run, state = trainer(), tmp_path / "state"
    run.step()
    run.save(state)
    run.step()

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="space"):
        patched.setattr("paceline.train.state.save_file", full)
        run.save(state)
    state.rename(tmp_path / "state.old")
    again = trainer()
    again.resume(state)
    assert again.step_count == 1
    again.save(state)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_truncated_state_is_named(tmp_path: Path, name: str) -> None:
    trainer().save(tmp_path / "state")
    path = tmp_path / "state" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        trainer().resume(tmp_path / "state")


def test_loss_falls() -> None:
    run = trainer(steps=30)
    losses = [run.step().loss for _ in range(30)]
    assert all(last < first - 0.1 for first, last in zip(losses[0], losses[-1], strict=True))
