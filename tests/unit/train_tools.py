"""For all tests of training: a model, a corpus and a trainer whose step takes milliseconds; and the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_config
from paceline.cache.dense import DenseAttend
from paceline.cli import main as cli
from paceline.config import ModelConfig
from paceline.train.corpus import Corpus
from paceline.train.loss import Trainee
from paceline.train.packing import Packed, pack
from paceline.train.settings import OptimConfig, TrainConfig
from paceline.train.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "steps": 5,
    "batch_tokens": 128,
    "seq_len": 64,
    "eval_every": 2,
    "save_every": 2,
    "log_every": 1,
}
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


def write_inputs(home: Path) -> Path:
    """config.json, data/*.jsonl and held_out.jsonl."""
    config = tiny_config(eos_token_id=[0, 4], pad_token_id=0, num_hidden_layers=2)
    (home / "config.json").write_text(json.dumps(config))
    (home / "data").mkdir()
    asked = [f"What is {n} plus {n + 1}?" for n in range(40)]
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": f"It is {2 * n + 1}."}]
             for n, q in enumerate(asked)]  # fmt: skip
    (home / "data" / "sums.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (home / "data" / "tale.jsonl").write_text('{"text": "Once upon a time there was a fox."}\n' * 5)
    (home / "held_out.jsonl").write_text(json.dumps({"messages": chats[3]}) + "\n")
    return home


def words(home: Path, out: Path, **flags: Any) -> list[str]:
    """The command line of a run; a flag that is None is left out, a list is given once for each entry."""
    given = {"config": home / "config.json", "data": home / "data", "eval_data": home / "held_out.jsonl", "out": out,
             "vocab_size": 300, "device": "cpu", **SETTINGS, **flags}  # fmt: skip
    line = ["train"]
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            flag = "--" + name.replace("_", "-")
            line += [flag] if one is True else [] if one is None else [flag, str(one)]
    return line


def command(*line: str) -> int:
    """Runs `paceline` with these words in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit) as ended:
        patched.setattr(sys, "argv", ["paceline", *line])
        cli.main()
    return int(ended.value.code or 0)


def train(home: Path, out: Path, **flags: Any) -> int:
    return command(*words(home, out, **flags))
