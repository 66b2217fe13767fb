"""Every mistake in a `paceline train` command: one sentence, exit code 2, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train_tools import train, write_inputs

from conftest import tiny_config
from paceline.tokenizer_training import train_tokenizer

Flags = dict[str, Any]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def bad_line(line: str) -> Callable[[Path], Flags]:
    def flags(home: Path) -> Flags:
        (home / "bad.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
        return {"data": home / "bad.jsonl"}

    return flags


def config_with(**changes: Any) -> Callable[[Path], Flags]:
    def flags(home: Path) -> Flags:
        (home / "config.json").write_text(json.dumps(tiny_config(**changes)))
        return {"config": home / "config.json"}

    return flags


def empty_directory(home: Path) -> Flags:
    (home / "empty").mkdir()
    return {"data": home / "empty"}


def a_file_as_out(home: Path) -> Flags:
    (home / "file").write_text("")
    return {"out": home / "file"}


def config_with_frozen(home: Path) -> Flags:
    return config_with(num_nextn_predict_layers=0)(home) | {"freeze_target": True, "init_from": home}


MISTAKES: list[tuple[str, str | Callable[[Path], Flags] | Flags, str]] = [
    ("a line that is no JSON", bad_line("{"), "bad.jsonl:2 is not valid JSON"),
    ("a wrong role", bad_line('{"messages": [{"role": "tool", "content": "x"}]}'), "bad.jsonl:2 has the role 'tool'"),
    ("half a character", bad_line('{"text": "\\ud83d"}'), "bad.jsonl:2 holds characters"),
    ("bad held-out text", lambda home: {"eval_data": bad_line("3")(home)["data"]}, "bad.jsonl:2 has neither"),
    ("an empty directory", empty_directory, "empty"),
    ("no data", {"data": "absent.jsonl"}, "absent.jsonl"),
    ("no configuration", {"config": "absent.json"}, "absent.json"),
    ("a configuration without sizes", config_with(hidden_size=None), "hidden_size"),
    ("an unknown family", config_with(model_type="abacus"), "abacus"),
    ("a context that is no number", config_with(max_position_embeddings="long"), "max_position_embeddings"),
    ("a family's field that is missing", config_with(kv_lora_rank=None), "kv_lora_rank"),
    ("more tokens than rows", {"vocab_size": 400}, "320"),
    ("a tokenizer larger than the model", lambda home: {"vocab_size": None, "tokenizer": home / "large"}, "320"),
    ("too small a vocabulary", {"vocab_size": 100}, "too small"),
    ("two tokenizers", {"tokenizer": "somewhere"}, "either"),
    ("no tokenizer", {"vocab_size": None}, "either"),
    ("a tokenizer that is not there", {"vocab_size": None, "tokenizer": "absent"}, "absent"),
    ("rows beyond the context", {"seq_len": 512, "batch_tokens": 512}, "context of 256"),
    ("a frozen target of random weights", {"freeze_target": True}, "--init-from"),
    ("nothing but a frozen target", config_with_frozen, "nothing to train"),
    ("what is implied", {"freeze_target": True, "detach_mtp": True}, "--detach-mtp"),
    ("a frozen target and no loss", {"freeze_target": True, "mtp_loss_weight": 0}, "--mtp-loss-weight"),
    (
        "a window of nobody",
        lambda home: config_with(num_nextn_predict_layers=0)(home) | {"draft_window": 8},
        "leave it out",
    ),
    ("a negative window", {"draft_window": -1}, "--draft-window"),
    ("an unknown type", {"save_dtype": "float16"}, "--save-dtype"),
    ("token ids that are none", bad_line('{"prompt_token_ids": [1], "token_ids": [-1]}'), "bad.jsonl:2 has neither"),
    ("ids of another model", bad_line('{"prompt_token_ids": [1], "token_ids": [999]}'), "token id 999"),
    ("modules with heads of their own", config_with(model_type="glm4_moe_lite"), "heads of their own"),
    ("no end", {"steps": None}, "when to stop"),
    ("a negative rate", {"lr": -1}, "--lr"),
    ("an unknown optimizer", {"optimizer": "sgd"}, "--optimizer"),
    ("an unknown device", {"device": "abacus"}, "abacus"),
    ("a repeat of nothing", {"repeat": ["tales=2"]}, "'tales'"),
    ("a repeat without a number", {"repeat": ["tale"]}, "NAME=TIMES"),
    ("nothing left", {"repeat": ["tale=0", "sums=0"]}, "no document"),
    ("nothing to resume", {"resume": True}, "no checkpoint"),
    ("a file as directory", a_file_as_out, "no directory"),
]


@pytest.mark.parametrize(("flags", "said"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Any, said: str
) -> None:
    train_tokenizer(["words " * 9 + "".join(map(chr, range(65, 300)))] * 3, 330, tmp_path / "large")
    given = flags(tmp_path) if callable(flags) else flags
    before = sorted(tmp_path.rglob("*"))
    assert train(inputs, **{"out": tmp_path / "out", **given}) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("paceline: ") and captured.err.count("\n") == 1 and said in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_unknown_flags_are_exit_2(inputs: Path, tmp_path: Path) -> None:
    assert train(inputs, tmp_path / "out", speed="fast") == 2 and not (tmp_path / "out").exists()
