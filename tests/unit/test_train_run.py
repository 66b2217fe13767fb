"""`paceline train` as a user meets it: a whole tiny run, what it exports, and stopping and going on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from train_tools import SETTINGS, train, words, write_inputs

from conftest import tiny_config
from paceline.cache.dense import DenseAttend
from paceline.config import ModelConfig
from paceline.runtime.build import load_mtp, load_target
from paceline.train.export import tokenizer_files
from paceline.train.loss import Trainee, ahead
from paceline.train.prepare import Inputs, prepare
from paceline.train.settings import OptimConfig, TrainConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert train(inputs, out) == 0
    return out


def test_a_run_leaves_a_model_a_state_and_figures(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "eval.safetensors", "metrics.jsonl", "model", "state", "tokenizer", "train.safetensors",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [2, 4, 5]
    assert all(len(line["loss"]) == 3 for line in lines if line["kind"] == "step")
    assert lines[-1]["total"]["places"] > 0 and "held_out" in lines[-1]


def trained(inputs: Path, out: Path) -> Trainee:
    """The model as the run left it, with the weights that it exports."""
    tokenizer = out / "tokenizer"
    data = Inputs(config=inputs / "config.json", data=[inputs / "data"], out=out, tokenizer=tokenizer, resume=True)
    trainer, about = prepare(data, TrainConfig(**SETTINGS, optim=OptimConfig()), torch.device("cpu"))
    trainer.resume(about.state)
    trainer.optimizer.use("ema")
    return trainer.model.eval()


@torch.no_grad()
def all_logits(model: Trainee, tokens: Tensor) -> list[Tensor]:
    """Of the target and of every depth, teacher forced."""
    attend, positions = DenseAttend(torch.zeros_like(tokens)), torch.arange(tokens.shape[1])
    states = [model.target(tokens[0], positions, attend)]
    assert model.mtp is not None
    for d, depth in enumerate(model.mtp.depths, 1):
        states.append(depth(ahead(tokens, d)[0], positions, attend, states[-1]))
    return [model.target.logits(state).float() for state in states]


def test_what_is_exported_is_what_was_trained(inputs: Path, finished: Path) -> None:
    model = trained(inputs, finished)
    target = load_target(finished / "model")
    loaded = Trainee(target, load_mtp(finished / "model", target))
    assert model.mtp is not None and loaded.mtp is not None
    for mine, theirs in ((model.target, loaded.target), (model.mtp, loaded.mtp)):
        named = theirs.weights()
        assert all(torch.equal(value, named[name]) for name, value in mine.weights().items())
    tokens = torch.randint(5, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    for found, wanted in zip(all_logits(loaded, tokens), all_logits(model, tokens), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.02)


def test_the_exported_directory_is_complete(inputs: Path, finished: Path) -> None:
    model, raw = finished / "model", tiny_config(num_hidden_layers=2)
    names = {path.name for path in model.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert json.loads((model / "generation_config.json").read_text()) == {"eos_token_id": [0, 4], "pad_token_id": 0}
    assert json.loads((model / "tokenizer_config.json").read_text())["model_max_length"] == 256
    settings = json.loads(tokenizer_files(finished / "tokenizer", 99)["tokenizer_config.json"])
    assert settings["model_max_length"] == 99 and settings["chat_template"], "the model's context, not the tokenizer's"
    assert ModelConfig.from_dir(model).num_nextn_predict_layers == 2
    with safe_open(model / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        for d in range(2):
            layer = f"model.layers.{raw['num_hidden_layers'] + d}."
            for name, of_target in (("embed_tokens.weight", "model.embed_tokens.weight"),
                                    ("shared_head.head.weight", "lm_head.weight")):  # fmt: skip
                assert torch.equal(file.get_tensor(layer + name), file.get_tensor(of_target))
            assert file.get_tensor(layer + "mlp.gate.e_score_correction_bias").dtype == torch.float32
            assert file.get_tensor(layer + "eh_proj.weight").dtype == torch.bfloat16


def test_transformers_loads_the_export(finished: Path) -> None:
    """The same logits in float32."""
    transformers = pytest.importorskip("transformers")
    path = str(finished / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    ours = load_target(path, torch.float32)
    tokens = torch.randint(5, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    attend = DenseAttend(torch.zeros_like(tokens))
    with torch.no_grad():
        wanted = theirs(tokens).logits[0]
        found = ours.logits(ours(tokens[0], torch.arange(20), attend))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_the_dtype_that_was_trained_in_is_the_one_that_is_named(inputs: Path, tmp_path: Path) -> None:
    assert train(inputs, tmp_path / "out", dtype="float32", steps=1, eval_data=None) == 0
    raw = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert raw["dtype"] == raw["torch_dtype"] == "float32"
    assert load_target(tmp_path / "out" / "model").norm.weight.dtype == torch.float32


@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3"])
def test_a_model_without_mtp_modules_is_trained_too(inputs: Path, tmp_path: Path, model_type: str) -> None:
    config = tiny_config(num_nextn_predict_layers=0, model_type=model_type, num_key_value_heads=2)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert train(inputs, tmp_path / "out", config=tmp_path / "config.json", steps=2) == 0
    assert load_target(tmp_path / "out" / "model").config.model_type == model_type


def test_resume_goes_on_and_a_second_start_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(inputs, out, steps=2) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert train(inputs, out, steps=4) == 2 and "--resume" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before, "nothing was touched"
    assert train(inputs, out, steps=4, resume=True) == 0
    assert json.loads((out / "state" / "state.json").read_text())["steps"] == 4
    shutil.rmtree(out / "model")
    assert train(inputs, out, steps=4, resume=True) == 0 and (out / "model").is_dir(), "a finished run exports again"
    assert train(inputs, out, steps=5, resume=True, repeat=["sums=2"]) == 2
    assert "data differs" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_run_and_ends_it(inputs: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    code = "from paceline.cli.main import main; main()"
    line = words(inputs, out, steps=100_000, eval_every=100_000, save_every=100_000, threads=1)
    process = subprocess.Popen([sys.executable, "-c", code, *line], stdout=subprocess.DEVNULL, env=os.environ)
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").is_file() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == 130
    finally:
        process.kill()
    kept = {"eval.safetensors", "metrics.jsonl", "state", "tokenizer", "train.safetensors"}
    assert {path.name for path in out.iterdir()} == kept, "and nothing half-written"
    done = json.loads((out / "state" / "state.json").read_text())["steps"]
    assert 1 <= done < 100_000
    assert train(inputs, out, steps=done + 1, resume=True) == 0


def test_a_run_may_begin_with_another_ones_weights(inputs: Path, finished: Path, tmp_path: Path) -> None:
    """With a rate of almost 0 what comes out is what was named, MTP modules and router biases included."""
    out = tmp_path / "second"
    flags = {"init_from": finished / "model", "steps": 1, "lr": 1e-12, "balance_rate": 0, "seed": 5}
    assert train(inputs, out, tokenizer=finished / "tokenizer", vocab_size=None, **flags) == 0
    first, second = (load_file(run / "model" / "model.safetensors") for run in (finished, out))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_of_another_shape_are_refused(
    inputs: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=3, eos_token_id=[0, 4])))
    out = tmp_path / "second"
    assert train(inputs, out, config=tmp_path / "config.json", init_from=finished / "model") == 2
    assert "--init-from needs a checkpoint" in capsys.readouterr().err and not out.exists()
