"""Muon, AdamW and the learning rate against their definitions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from train_tools import trainer

from paceline.errors import UserError
from paceline.train.optim import Optimizer, orthogonalised
from paceline.train.schedule import Schedule
from paceline.train.settings import OptimConfig, TrainConfig


def random_gradients(optimizer: Optimizer, steps: int) -> Iterator[dict[str, Tensor]]:
    """Gives every parameter a gradient, in two parts, for each of `steps` steps; and tells it."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        told: dict[str, Tensor] = {}
        for _ in range(2):
            for slot in optimizer.slots:
                slot.param.grad = torch.randn(slot.param.shape, generator=generator).to(slot.param.dtype)
                told[slot.name] = told.get(slot.name, torch.zeros(())) + slot.param.grad
            optimizer.accumulate()
        yield told


@given(st.integers(1, 3), st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_orthogonalised_has_singular_values_near_1(n: int, rows: int, columns: int, seed: int) -> None:
    """And keeps the singular vectors: its product with U V^T is the sum of its singular values."""
    g = torch.randn(n, rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    found = orthogonalised(g)
    assert found.dtype == torch.float32 and found.shape == g.shape
    for one, left, values, right in zip(found, u, s, vt, strict=True):
        new = torch.linalg.svdvals(one)
        strong = int((values > 0.05 * values[0]).sum())  # the weakest directions need more iterations to come up
        assert new[0] < 1.3 and new[strong - 1] > 0.5
        along = (left.t() @ one @ right.t()).diagonal()[:strong]
        assert (along - 0.9).abs().max() < 0.45


def test_orthogonalised_nothing_is_nothing() -> None:
    assert orthogonalised(torch.zeros(2, 4, 3)).abs().max() == 0


def test_adamw_is_that_of_torch() -> None:
    run = trainer(dtype="float32")
    config = OptimConfig(optimizer="adamw", clip=0, weight_decay=0.2)
    ours = Optimizer(run.model, config)
    theirs = {slot.name: slot.param.detach().clone().requires_grad_() for slot in ours.slots}
    groups = [
        {"params": [p for p in theirs.values() if (p.dim() >= 2) == decays], "weight_decay": 0.2 * decays}
        for decays in (True, False)
    ]
    reference = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps)
    for number, gradients in enumerate(random_gradients(ours, 4), 1):
        lr = 0.01 / number
        for group in reference.param_groups:
            group["lr"] = lr
        for name, param in theirs.items():
            param.grad = gradients[name]
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        assert ours.step(lr) == pytest.approx(float(norm), rel=1e-5)
        reference.step()
    for slot in ours.slots:
        torch.testing.assert_close(slot.param, theirs[slot.name], rtol=1e-5, atol=1e-6)


def test_muon_moves_matrices_by_a_fixed_amount() -> None:
    """Embedding, head, routers and small parameters are AdamW's; every singular direction of a matrix moves alike."""
    run = trainer(dtype="float32")
    muon = Optimizer(run.model, OptimConfig(weight_decay=0))
    before = {slot.name: slot.master.clone() for slot in muon.slots}
    for _ in random_gradients(muon, 1):
        muon.step(0.01)
    for slot in muon.slots:
        is_table = any(part in slot.name for part in ("embed_tokens", "lm_head", "gate.weight"))
        assert slot.muon == (slot.param.dim() >= 2 and not is_table), slot.name
        if slot.muon:
            moved = slot.master - before[slot.name]  # [rows, columns], or one for each expert
            unit = 0.01 * 0.2 * max(slot.param.shape[-2:]) ** 0.5
            values = torch.linalg.svdvals(moved) / unit
            assert values.max() < 1.3 and values.median() > 0.6, slot.name


def test_weights_are_published_averaged_and_given_back() -> None:
    run = trainer()
    optimizer = Optimizer(run.model, OptimConfig(ema=0.5))
    slot = optimizer.slots[0]
    average = slot.master.clone()
    for number, _ in enumerate(random_gradients(optimizer, 5), 1):
        optimizer.step(0.1)
        keep = min(0.5, (1 + number) / (10 + number))
        average = keep * average + (1 - keep) * slot.master
    assert torch.equal(slot.param, slot.master.to(torch.bfloat16))
    optimizer.use("ema")
    assert torch.allclose(slot.param.float(), average, rtol=1e-2) and not torch.equal(slot.param, slot.master)
    optimizer.use("master")
    assert torch.equal(slot.param, slot.master.to(torch.bfloat16))


def test_a_large_gradient_is_clipped() -> None:
    run = trainer(dtype="float32")
    optimizer = Optimizer(run.model, OptimConfig(clip=0.5))
    told = next(random_gradients(optimizer, 1))
    norm = optimizer.step(0.01)
    assert norm > 0.5, "what is reported is the norm before"
    for slot in optimizer.slots:
        moment, share = ("momentum", 1 - 0.95) if slot.muon else ("first", 1 - 0.9)
        torch.testing.assert_close(slot.moments[moment], told[slot.name] * share * 0.5 / norm)


KIND, SHARE = st.sampled_from(["wsd", "cosine", "constant"]), st.floats(0, 1)


@given(KIND, SHARE, SHARE, st.integers(0, 20), st.integers(0, 50), st.floats(-0.5, 1.5))
def test_every_schedule_stays_between_0_and_the_largest_rate(
    kind: str, decay: float, floor: float, warmup: int, step: int, progress: float
) -> None:
    assert 0 <= Schedule(kind, 2.0, warmup, decay, floor).at(step, progress) <= 2.0


def test_shapes_of_the_schedules() -> None:
    def rates(kind: str) -> list[float]:
        schedule = Schedule(kind, 2.0, 0, decay=0.4, floor=0.1)
        return [schedule.at(100, progress) for progress in (0, 0.5, 0.6, 0.8, 1)]

    assert rates("constant") == [2.0] * 5
    assert rates("wsd") == pytest.approx([2.0, 2.0, 2.0, 2 * 0.55, 0.2])
    assert rates("cosine") == pytest.approx([2.0, 2 * 0.55, 0.2 + 1.8 * 0.3454915, 0.2 + 1.8 * 0.0954915, 0.2])
    warming = [Schedule("constant", 2.0, 4).at(step, 0) for step in range(6)]
    assert warming == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "when to stop"),
        ({"steps": 0}, "above 0"),
        ({"epochs": float("inf")}, "finite"),
        ({"steps": 1, "lr": float("nan")}, "finite"),
        ({"steps": 1, "lr": -1.0}, "--lr"),
        ({"steps": 1, "seq_len": 4}, "--seq-len"),
        ({"steps": 1, "batch_tokens": 100}, "--batch-tokens"),
        ({"steps": 1, "micro_tokens": 10}, "--micro-tokens"),
        ({"steps": 1, "schedule": "steep"}, "--schedule"),
        ({"steps": 1, "loss_on": "questions"}, "--loss-on"),
        ({"steps": 1, "dtype": "float16"}, "--dtype"),
        ({"steps": 1, "save_every": 0}, "intervals"),
        ({"steps": 1, "seed": -1}, "--seed"),
        ({"steps": 1, "optim": OptimConfig(optimizer="sgd")}, "--optimizer"),
        ({"steps": 1, "optim": OptimConfig(clip=-1.0)}, "--clip"),
        ({"steps": 1, "optim": OptimConfig(ema=1.0)}, "--ema"),
        ({"steps": 1, "optim": OptimConfig(weight_decay=float("inf"))}, "finite"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_nonsense_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TrainConfig(**given)  # type: ignore[arg-type]
