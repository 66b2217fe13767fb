"""Each thing that can be odd about a checkpoint, done to a clean one: exactly one warning, which names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import write_tiny
from paceline.checkpoint.reader import INDEX, SINGLE
from paceline.inspection.odd_files import FILE_CHECKS
from paceline.inspection.oddities import CHECKS
from paceline.inspection.report import inspect

Tensors = dict[str, Tensor]
UP = "model.layers.1.mlp.experts.3.up_proj.weight"


@dataclass(frozen=True)
class Case:
    """What is done to the tensors, to config.json and to the files, and what the warning says then."""

    name: str
    says: str
    tensors: Callable[[Tensors], Any] = lambda _: None
    config: Callable[[dict[str, Any]], Any] = lambda _: None
    files: Callable[[Path], Any] = lambda _: None


def dropped(*marks: str) -> Callable[[Tensors], None]:
    """Without the tensors whose names contain a mark."""

    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if any(mark in name for mark in marks)]:
            del tensors[name]

    return drop


def quantised(tensors: Tensors, name: str = UP) -> None:
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[name + "_scale_inv"] = torch.ones(1, 1)


def sharded(directory: Path, **metadata: Any) -> None:
    """The same tensors behind an index that tells `metadata`."""
    (directory / SINGLE).rename(directory / "model-00001-of-00001.safetensors")
    names = load_file(directory / "model-00001-of-00001.safetensors")
    index = {"metadata": metadata, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (directory / INDEX).write_text(json.dumps(index))


def fp8_config(config: dict[str, Any], **more: Any) -> None:
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128], **more}


def yarn(config: dict[str, Any], factor: float) -> None:
    config["rope_scaling"] = {"type": "yarn", "factor": factor, "original_max_position_embeddings": 64}


CASES = (
    Case("no MTP weights", "MTP module 1 of 1 is promised by config.json, but all its tensors are missing, as model.la"
         "yers.3.enorm.weight (and", dropped("layers.3.", "layers.4."), lambda c: c.update(num_nextn_predict_layers=1)),
    Case("half an MTP module", "MTP module 2 of 2 lacks tensor model.layers.4.eh_proj.weight.",
         dropped("layers.4.eh_proj")),
    Case("MTP module of another size", "MTP module 1 of 2 has tensor model.layers.3.eh_proj.weight in another shape",
         lambda t: t.update({"model.layers.3.eh_proj.weight": torch.zeros(64, 64, dtype=torch.bfloat16)})),
    Case("MTP module with more", "MTP module 2 of 2 has tensor model.layers.4.indexer.weight, which has no place in it",
         lambda t: t.update({"model.layers.4.indexer.weight": torch.zeros(4, dtype=torch.bfloat16)})),
    Case("MTP not in config.json", "There are tensors of 2 more MTP modules (as model.layers.3.",
         config=lambda c: c.update(num_nextn_predict_layers=0)),
    Case("target incomplete", "Tensor model.norm.weight of the target is missing", dropped("model.norm.")),
    Case("target of another shape", "Tensor model.norm.weight has another shape",
         lambda t: t.update({"model.norm.weight": torch.ones(5, dtype=torch.bfloat16)})),
    Case("a tensor too many", "Tensor model.visual.weight has no place",
         lambda t: t.update({"model.visual.weight": torch.ones(5, dtype=torch.bfloat16)})),
    Case("an expert gap", "model.layers.2.mlp.experts lacks expert 5 (and 1 more).",
         dropped("layers.2.mlp.experts.5.", "layers.2.mlp.experts.7.")),
    Case("an expert gap in a module", "model.layers.4.mlp.experts lacks expert 0.", dropped("layers.4.mlp.experts.0.")),
    Case("FP8 without scales", f"FP8 tensor {UP} comes without its scales",
         lambda t: (quantised(t), t.pop(UP + "_scale_inv")), fp8_config),
    Case("scales of other blocks", f"Scale {UP}_scale_inv has another shape",
         lambda t: (quantised(t), t.update({UP + "_scale_inv": torch.ones(2, 1)})), fp8_config),
    Case("a scale alone", "Scale model.layers.1.x.weight_scale_inv is there without its weight.",
         lambda t: t.update({"model.layers.1.x.weight_scale_inv": torch.ones(1, 1)})),
    Case("a scale too many", f"Scale {UP}_scale_inv belongs to a weight that is not quantised.",
         lambda t: t.update({UP + "_scale_inv": torch.ones(1, 1)})),
    Case("FP8 told, not stored", "config.json says fp8, but no tensor is stored so.", config=fp8_config),
    Case("FP8 stored, not told", f"Tensor {UP} is fp8, but quantization_config of config.json says nothing.",
         quantised),
    Case("other blocks told", "weights quantised as 'fp8' with these settings cannot be read", quantised,
         lambda c: fp8_config(c, weight_block_size=[64, 64])),
    Case("unknown quantisation", "weights quantised as 'awq' with these settings",
         config=lambda c: c.update(quantization_config={"quant_method": "awq"})),
    Case("packed integers", f"Tensor {UP} is stored as I32, which Paceline does not read.",
         lambda t: t.update({UP: t[UP].to(torch.int32)})),
    Case("mixed types", "Weights are of mixed types: 160 tensors are BF16, but model.norm.weight is F32.",
         lambda t: t.update({"model.norm.weight": t["model.norm.weight"].float()})),
    Case("dtype contradicted", "config.json says float16, but the weights are stored as bfloat16.",
         config=lambda c: c.update(dtype="float16")),
    Case("no dtype", "config.json tells no dtype", config=lambda c: c.pop("dtype")),
    Case("tied, with a head", "lm_head.weight is stored though tie_word_embeddings is true",
         config=lambda c: c.update(tie_word_embeddings=True)),
    Case("a stray shard", "1 file is not named by the index, and not read: old.safetensors.",
         files=lambda d: shutil.copy(d / SINGLE, d / "old.safetensors")),
    Case("pickles", "2 files are no safetensors, and never opened: pytorch_model.bin.",
         files=lambda d: [(d / name).write_bytes(b"?") for name in ("pytorch_model.bin", "x.pt")]),
    Case("wrong total_size", "tells a total_size of 5 bytes, but its tensors have",
         files=lambda d: sharded(d, total_size=5)),
    Case("no total_size", "does not tell total_size", files=sharded),
    Case("file and index", f"There is {SINGLE}, and an {INDEX} that names other files", files=lambda d:
         (d / INDEX).write_text('{"weight_map": {"a": "b.safetensors"}}')),
    Case("no tokenizer", "There is no tokenizer", files=lambda d: (d / "tokenizer.json").unlink()),
    Case("no chat template", "There is no chat template",
         files=lambda d: (d / "tokenizer_config.json").write_text("{}")),
    Case("no end", "Nothing names a token that ends a text", config=lambda c: c.pop("eos_token_id"),
         files=lambda d: (d / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')),
    Case("more context than told", "rope scaling (yarn) stretches 64 tokens by 8 to 512, but max_position_embeddings "
         "is 256", config=lambda c: yarn(c, 8)),
    Case("unknown family", "model_type 'gpt_oss' is not supported; known families:",
         config=lambda c: c.update(model_type="gpt_oss")),
    Case("absurd sizes", "config.json names 5 layers of 1073741824 experts, which no model has.",
         config=lambda c: c.update(n_routed_experts=1 << 30)),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_told(case: Case, tiny_model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_model, tmp_path / "odd"))
    tensors = load_file(directory / SINGLE)
    case.tensors(tensors)
    save_file(tensors, directory / SINGLE)
    config = json.loads((directory / "config.json").read_text())
    case.config(config)
    (directory / "config.json").write_text(json.dumps(config))
    case.files(directory)
    warnings = inspect(directory).warnings
    assert len(warnings) == 1, warnings
    assert case.says in warnings[0]


def test_a_sound_checkpoint_is_not_odd(tiny_model: Path, tmp_path: Path) -> None:
    assert inspect(tiny_model).warnings == ()
    without = write_tiny(tmp_path / "without", num_nextn_predict_layers=0, rope_scaling=None)
    assert inspect(without).warnings == ()


def test_sound_stretching_and_fp8_are_not_odd(tiny_model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_model, tmp_path / "sound"))
    tensors, config = load_file(directory / SINGLE), json.loads((directory / "config.json").read_text())
    quantised(tensors)
    quantised(tensors, "model.layers.3.mlp.experts.3.up_proj.weight")
    save_file(tensors, directory / SINGLE)
    fp8_config(config)
    yarn(config, 4)
    del config["eos_token_id"]  # the tokenizer has one
    (directory / "config.json").write_text(json.dumps(config))
    sharded(directory, total_size=sum(tensor.nbytes for tensor in tensors.values()))
    assert inspect(directory).warnings == ()


def test_every_check_has_a_case() -> None:
    assert len(CASES) > len(CHECKS) + len(FILE_CHECKS)
