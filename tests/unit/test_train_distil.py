"""Modules that learn from their target: the loss against its definition, the target left as it is, and the way there
from `generate --json`."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from train_tools import command, corpus, states_of_document, train, trainer, write_inputs

from conftest import write_tiny
from paceline.cache.dense import DenseAttend
from paceline.tokenizer import Tokenizer
from paceline.train import distil
from paceline.train.corpus import encode_corpus
from paceline.train.distil import divergences, linear_divergence
from paceline.train.examples import read_examples
from paceline.train.loss import goals
from paceline.train.packing import pack


@given(n=st.integers(0, 20), chunk=st.integers(1, 8), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_divergence_is_that_of_torch(n: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, teachers, head = (torch.randn(size, 6, generator=generator) for size in (n, n, 11))
    rows.requires_grad_()
    weights = torch.rand(n, generator=generator)
    with patch.object(distil, "CHUNK", chunk):
        total, each = linear_divergence(rows, teachers, head, weights)
    log_p, log_q = ((x @ head.t()).log_softmax(-1) for x in (teachers, rows))
    wanted = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(each, wanted.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(total, (wanted * weights).sum(), rtol=1e-4, atol=1e-6)
    (found,) = torch.autograd.grad(3 * total, rows)
    (right,) = torch.autograd.grad(3 * (wanted * weights).sum(), rows)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)


def test_loss_is_the_definition_and_only_modules_learn() -> None:
    data = pack(corpus([3, 9, 1, 17, 2, 30, 5, 16]), 32, 0, answers_only=True)
    run = trainer(data, dtype="float32", batch_tokens=32 * len(data), freeze_target=True)
    model = run.model
    wanted = [0.0] * 3
    for start, end in [piece for row in data.packed for piece in row]:
        tokens, counted = data.corpus.tokens[start:end].long(), data.counts[start:end]
        with torch.no_grad():
            logits = [model.target.logits(rows).log_softmax(-1) for rows in states_of_document(model, tokens)]
        for d, log_q in enumerate(logits):
            places = [i for i in range(end - start - d - 1) if counted[i + d + 1]]
            for i in places:
                log_p = logits[0][i + d]
                of_text = -log_p[tokens[i + 1]]
                wanted[d] += float((log_p.exp() * (log_p - log_q[i])).sum() if d else of_text)
    batch = data.batch(range(len(data)))
    weights = [0.0, 0.5, 0.25]
    total, sums = divergences(model, batch, weights)
    assert sums == pytest.approx(wanted, rel=1e-4) and min(sums) > 0
    assert total.item() == pytest.approx(0.5 * wanted[1] + 0.25 * wanted[2], rel=1e-4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = run.step()
    counts = goals(batch, 2).counts
    assert report.loss == pytest.approx([s / n for s, n in zip(wanted, counts, strict=True)], rel=1e-4)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith("mtp.") for name in changed)
    assert any("eh_proj" in name for name in changed) and any("correction_bias" in name for name in changed)


def test_modules_come_nearer_to_their_target() -> None:
    run = trainer(dtype="float32", lr=2e-2, steps=40, freeze_target=True)
    reports = [run.step() for _ in range(40)]
    assert sum(reports[-1].loss[1:]) < 0.5 * sum(reports[0].loss[1:])


@given(st.integers(1, 12), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_a_window_is_the_last_places(window: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    documents = torch.tensor([[0] * 9 + [1] * 3, [0] * 12])
    q, k, v = (torch.randn(24, 2, 4, generator=generator) for _ in range(3))
    found = DenseAttend(documents, window)(0, q, k, v, 0.5)
    for at in range(24):
        row, place = divmod(at, 12)
        seen = [j for j in range(place + 1) if place - j < window and documents[row, j] == documents[row, place]]
        keys = torch.tensor(seen) + 12 * row
        weights = (0.5 * torch.einsum("hd,jhd->hj", q[at], k[keys])).softmax(-1)
        torch.testing.assert_close(found[at], torch.einsum("hj,jhd->hd", weights, v[keys]), rtol=1e-4, atol=1e-5)


def test_the_window_is_the_modules_alone() -> None:
    """The target's states do not depend on it; those of a module do, from the place on where something is hidden."""
    data = pack(corpus([30]), 32, 0)
    batch = data.batch([0])
    runs = [trainer(data, dtype="float32", batch_tokens=32, draft_window=window) for window in (0, 4)]
    all_seen, few_seen = (run.model.hidden(batch) for run in runs)
    assert torch.equal(all_seen[0], few_seen[0])
    torch.testing.assert_close(all_seen[1][:4], few_seen[1][:4])
    assert (all_seen[1][4:30] - few_seen[1][4:30]).abs().amax(-1).min() > 1e-6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny run with its model, as a user has it who goes on with the modules alone."""
    home = write_inputs(tmp_path_factory.mktemp("inputs"))
    assert train(home, home / "first") == 0
    return home


def own_text(home: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What the model says, as `generate --json` prints it."""
    prompts = home / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {n} plus {n}?"}) + "\n" for n in range(12)))
    line = ["generate", "--model", str(home / "first" / "model"), "--json", "--prompts-file", str(prompts)]
    capsys.readouterr()
    assert command(*line, "--max-tokens", "24", "--ignore-eos", "--temperature", "1") == 0
    path = home / "own.jsonl"
    path.write_text(capsys.readouterr().out)
    return path


def named_weights(directory: Path) -> dict[str, Tensor]:
    return load_file(str(directory / "model.safetensors"))


def test_from_own_text_to_better_modules(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, first = own_text(home, capsys), home / "first" / "model"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer = Tokenizer.from_dir(first)
    made = encode_corpus(read_examples([path]), tokenizer)
    assert made.tokens.tolist() == [i for row in rows for i in row["prompt_token_ids"] + row["token_ids"]]
    masks = [[False] * len(row["prompt_token_ids"]) + [True] * len(row["token_ids"]) for row in rows]
    assert made.answers.tolist() == [counted for mask in masks for counted in mask]
    flags = {"data": path, "vocab_size": None, "tokenizer": first, "init_from": first, "freeze_target": True,
             "loss_on": "answers", "draft_window": 8, "dtype": "float32", "save_dtype": "bfloat16"}  # fmt: skip
    assert train(home, home / "second", **flags) == 0
    before, after = named_weights(first), named_weights(home / "second" / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert changed and all(name.startswith(("model.layers.2.", "model.layers.3.")) for name in changed)
    assert not any("embed_tokens" in name or "shared_head.head" in name for name in changed)


def test_token_ids_need_no_marks_of_ours(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any checkpoint's modules can learn from what it says; texts need a tokenizer trained here, and say so."""
    model = write_tiny(tmp_path / "theirs", num_nextn_predict_layers=2)
    (tmp_path / "own.jsonl").write_text('{"prompt_token_ids": [5, 6, 7], "token_ids": [8, 9, 10, 11, 12]}\n' * 60)
    (tmp_path / "text.jsonl").write_text('{"text": "words"}\n')
    flags = {"config": model, "tokenizer": model, "init_from": model, "vocab_size": None, "eval_data": None,
             "freeze_target": True, "loss_on": "answers"}  # fmt: skip
    assert train(home, tmp_path / "run", data=tmp_path / "own.jsonl", **flags) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    capsys.readouterr()
    assert train(home, tmp_path / "other", data=[tmp_path / "own.jsonl", tmp_path / "text.jsonl"], **flags) == 2
    assert "chat template" in capsys.readouterr().err
