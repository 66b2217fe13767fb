"""What measures quantised models: loss by teacher forcing, and the race of int8 with bf16."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import int8_speed
import pytest
import quantised_loss
import torch

from conftest import tiny_config
from paceline.bench.loss import mean_loss
from paceline.cache.dense import DenseAttend
from paceline.llm import LLM
from paceline.runtime.build import load_target
from paceline.tokenizer import Tokenizer


def test_loss_is_the_mean_over_tokens_of_what_each_prefix_says(tiny_model: Path) -> None:
    target, texts = load_target(tiny_model, dtype="float32"), [[5, 9, 200, 31, 7], [8, 8]]
    losses = []
    for ids in texts:
        for place in range(1, len(ids)):
            attend = DenseAttend(torch.zeros(1, place, dtype=torch.int64))
            with torch.inference_mode():
                last = target.logits(target(torch.tensor(ids[:place]), torch.arange(place), attend))[-1]
            losses.append(-last.log_softmax(-1)[ids[place]].item())
    assert mean_loss(target, texts) == pytest.approx(sum(losses) / 5, abs=1e-4)
    with torch.no_grad():
        target.lm_head.weight.zero_()
    assert mean_loss(target, texts) == pytest.approx(log(320), abs=1e-5)


def test_int8_costs_the_bundled_model_less_than_a_hundredth_of_its_loss() -> None:
    plain, int8 = (LLM(quantization=kind, drafter="none").loaded for kind in ("none", "int8"))
    texts = list(quantised_loss.texts_of(plain.tokenizer, 2048, None, 24))
    assert len(texts) == 24
    losses = [mean_loss(loaded.target, texts) for loaded in (plain, int8)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_texts_come_from_a_directory_cut_to_the_context(tiny_model: Path, tmp_path: Path) -> None:
    line = json.dumps({"messages": [{"role": "user", "content": "one two three four five six " * 9}]})
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f"{line}\n{line}\n{line}\n")
    texts = list(quantised_loss.texts_of(Tokenizer.from_dir(tiny_model), 20, tmp_path, 2))
    assert [len(ids) for ids in texts] == [20] * 4


def test_the_race_tells_rates_and_bytes(tmp_path: Path) -> None:
    raw = tiny_config(vocab_size=16384, num_nextn_predict_layers=0)
    path, parameters = int8_speed.write_random(tmp_path / "model", raw)
    sides = {kind: LLM(path, quantization=kind, drafter="none", max_num_seqs=1) for kind in ("none", "int8")}
    plain, int8 = (int8_speed.weight_bytes(llm) for llm in sides.values())
    assert plain == 2 * parameters + 2 * 2 * 8  # two routers' biases are float32
    assert 0.5 * plain < int8 < plain
    found = int8_speed.race(sides, prompt=4, tokens=5, repeats=2)
    assert len(found["ratios"]) == 2 and min(found["bf16"], found["int8"], found["ratio"]) > 0
    found |= {"shape": "tiny", "parameters": parameters, "threads": 1, "bytes_bf16": plain, "bytes_int8": int8}
    assert f"{int8 / plain:.3f}" in int8_speed.summary(found)
