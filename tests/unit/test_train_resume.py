"""A run that is saved and resumed goes on with the very numbers of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.train.corpus import Corpus
from paceline.train.packing import Packed, pack
from paceline.train.settings import OptimConfig, TrainConfig
from paceline.train.trainer import Trainer

SHAPE = {
    "model_type": "deepseek_v3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}


def packed() -> Packed:
    torch.manual_seed(0)
    lengths = torch.randint(3, 30, (40,))
    tokens = torch.randint(0, 64, (int(lengths.sum()),), dtype=torch.int32)
    sources = torch.zeros(40, dtype=torch.int64)
    return pack(Corpus(tokens, torch.ones(len(tokens), dtype=torch.bool), lengths.cumsum(0), sources, ("a",)), 32, 0)


def trainer(**changes: object) -> Trainer:
    optim = OptimConfig(ema=0.9, optimizer=str(changes.pop("optimizer", "muon")))
    settings = {"steps": 6, "batch_tokens": 128, "seq_len": 32, "warmup_steps": 2, "lr": 1e-2, **changes}
    config = TrainConfig(**settings, optim=optim)  # type: ignore[arg-type]
    return Trainer(config, ModelConfig.from_dict(SHAPE), packed(), torch.device("cpu"))


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


def test_other_data_is_refused(tmp_path: Path) -> None:
    first, other = trainer(), trainer(seed=1)
    first.save(tmp_path / "state")
    with pytest.raises(UserError, match="seed"):
        other.resume(tmp_path / "state")


def test_loss_falls() -> None:
    run = trainer(steps=30)
    losses = [run.step().loss for _ in range(30)]
    assert all(last < first - 0.1 for first, last in zip(losses[0], losses[-1], strict=True))
