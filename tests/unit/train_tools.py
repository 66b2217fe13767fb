"""A model, a corpus and a trainer so small that a step takes milliseconds, for all tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from conftest import tiny_config
from paceline.cache.dense import DenseAttend
from paceline.config import ModelConfig
from paceline.train.corpus import Corpus
from paceline.train.loss import Trainee
from paceline.train.packing import Packed, pack
from paceline.train.settings import OptimConfig, TrainConfig
from paceline.train.trainer import Trainer

SMALLER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 128,
}


def model_config(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(tiny_config(**{**SMALLER, **changes}))


def corpus(lengths: Sequence[int], seed: int = 0) -> Corpus:
    """Random text; documents belong to the sources a and b in turn; two places of three are answers."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 64, (sum(lengths),), generator=generator, dtype=torch.int32)
    answers = torch.rand(len(tokens), generator=generator) < 0.67
    return Corpus(tokens, answers, torch.tensor(lengths).cumsum(0), torch.arange(len(lengths)) % 2, ("a", "b"))


def packed(answers_only: bool = False, repeat: dict[str, float] | None = None) -> Packed:
    lengths = [3 + 7 * n % 27 for n in range(40)]
    return pack(corpus(lengths), 32, 0, answers_only=answers_only, repeat=repeat)


def trainer(data: Packed | None = None, shape: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    optim = OptimConfig(ema=0.9, optimizer=changes.pop("optimizer", "muon"))
    settings = {"steps": 6, "batch_tokens": 128, "seq_len": 32, "warmup_steps": 2, "lr": 1e-2, **changes}
    config = TrainConfig(**settings, optim=optim)
    return Trainer(config, model_config(**(shape or {})), data or packed(), torch.device("cpu"))


def states_of_document(model: Trainee, tokens: Tensor) -> list[Tensor]:
    """The definition, for one document alone: states[d] [n - d, hidden], of the target (0) and each depth, by what
    depth d reads: the output of depth d - 1 at place i and token i + d, at position i."""
    length = len(tokens)
    attend = DenseAttend(torch.zeros(1, length, dtype=torch.int64))
    states = [model.target(tokens, torch.arange(length), attend)]
    for d, depth in enumerate(model.mtp.depths if model.mtp is not None else [], 1):
        n = length - d
        if n < 1:
            break
        attend = DenseAttend(torch.zeros(1, n, dtype=torch.int64))
        states.append(depth(tokens[d:], torch.arange(n), attend, states[-1][:n]))
    return states
