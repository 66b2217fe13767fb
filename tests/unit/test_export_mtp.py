"""Exports of MTP modules, against safetensors' own reader and the layouts as their tools define them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from make_deepseek_checkpoint import TINY, Sizes, entries, make_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from paceline.checkpoint.reader import INDEX
from paceline.cli.main import make_app
from paceline.convert import export_mtp as export_module
from paceline.convert.export_mtp import export_mtp, verify_export
from paceline.convert.export_plan import plan_export
from paceline.convert.export_write import MANIFEST
from paceline.convert.quantize import plan_quantize, quantize
from paceline.errors import UserError
from paceline.formats import INT8

LAYER = "model.layers.2."  # of TINY's module
SHARED = ("embed_tokens.weight", "shared_head.head.weight")
FILES = {
    "xllm": "mtp_layer_parameters.safetensors",
    "sglang": "nextn_layer_parameters.safetensors",
    "original": "model.safetensors",
}
LIFTED = r"(embed_tokens|shared_head|enorm|hnorm|eh_proj)\."
CHOICES = [(layout, dtype, shared) for layout in FILES for dtype in ("keep", "bfloat16") for shared in ("keep", "drop")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("deepseek") / "full", TINY, shards=3)


@pytest.fixture(scope="module")
def everything(source: Path) -> dict[str, Tensor]:
    return {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}


def renamed(layout: str, part: str) -> str:
    if layout == "original":
        return LAYER + part
    return "model." + part if layout == "xllm" and re.match(LIFTED, part) else "model.layers.0." + part


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def plain_product(weight: Tensor, scale: Tensor) -> Tensor:
    spread = scale.repeat_interleave(128, 0)[: weight.shape[0]].repeat_interleave(128, 1)[:, : weight.shape[1]]
    return (weight.to(torch.float32) * spread).to(torch.bfloat16)


def wanted(everything: dict[str, Tensor], layout: str, dtype: str, shared: str) -> dict[str, Tensor]:
    """What the export must hold, from the public definitions alone."""
    parts = {name.removeprefix(LAYER): tensor for name, tensor in everything.items() if name.startswith(LAYER)}
    parts = {part: tensor for part, tensor in parts.items() if shared == "keep" or part not in SHARED}
    if dtype == "bfloat16":
        scales = {part: tensor for part, tensor in parts.items() if part.endswith("_scale_inv")}
        products = {
            s.removesuffix("_scale_inv"): plain_product(parts[s.removesuffix("_scale_inv")], scales[s]) for s in scales
        }
        parts = {part: tensor for part, tensor in parts.items() if part not in scales} | products
    return {renamed(layout, part): tensor for part, tensor in parts.items()}


@pytest.mark.parametrize(("layout", "dtype", "shared"), CHOICES)
def test_tensors_are_those_of_the_source(
    tmp_path: Path, source: Path, everything: dict[str, Tensor], layout: str, dtype: str, shared: str
) -> None:
    plan = plan_export(source, layout, dtype, shared)
    made = export_mtp(plan, tmp_path / "out", verify=True)
    found, expected = load_file(made / FILES[layout]), wanted(everything, layout, dtype, shared)
    assert found.keys() == expected.keys()
    assert [name for name in found if not same_bytes(found[name], expected[name])] == []
    assert plan.total_size == sum(tensor.nbytes for tensor in found.values())
    assert json.loads((made / INDEX).read_text()) == {
        "metadata": {"total_size": plan.total_size},
        "weight_map": dict.fromkeys((copy.name for copy in plan.copies), FILES[layout]),
    }


def test_the_defaults_are_those_of_each_layouts_own_tool(source: Path) -> None:
    chosen = {layout: (plan := plan_export(source, layout), plan.dtype, plan.shared)[1:] for layout in FILES}
    assert chosen == {"xllm": ("bfloat16", "keep"), "sglang": ("keep", "drop"), "original": ("keep", "keep")}


def test_partial_blocks_are_what_is_tested(everything: dict[str, Tensor]) -> None:
    shapes = {tuple(t.shape) for name, t in everything.items() if t.dtype == torch.float8_e4m3fn and LAYER in name}
    assert any(rows > 128 and rows % 128 and columns > 128 and columns % 128 for rows, columns in shapes)


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_config_says_what_is_there(tmp_path: Path, source: Path, layout: str, dtype: str) -> None:
    made = export_mtp(plan_export(source, layout, dtype), tmp_path / "out")
    config, before = (json.loads((place / "config.json").read_text()) for place in (made, source))
    with safe_open(made / FILES[layout], "pt") as file:
        quantised = any(file.get_slice(name).get_dtype() == "F8_E4M3" for name in file.keys())  # noqa: SIM118
    assert bool(config.get("quantization_config")) == quantised == (dtype == "keep")
    assert not quantised or config["quantization_config"] == before["quantization_config"]
    assert config["num_nextn_predict_layers"] == 1 and config["hidden_size"] == before["hidden_size"]
    assert "auto_map" not in config  # it names Python files, which do not travel
    assert config["num_hidden_layers"] == (2 if layout == "original" else 1)


def test_only_tokenizer_and_generation_settings_travel(tmp_path: Path, source: Path) -> None:
    made = export_mtp(plan_export(source), tmp_path / "out")
    travelled = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    written = ["config.json", INDEX, FILES["xllm"], MANIFEST]
    assert sorted(path.name for path in made.iterdir()) == sorted(travelled + written)
    assert all((made / name).read_bytes() == (source / name).read_bytes() for name in travelled)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_manifest_tells_what_came_from_where(tmp_path: Path, source: Path, everything: dict[str, Tensor]) -> None:
    made = export_mtp(plan_export(source), tmp_path / "out")
    manifest = json.loads((made / MANIFEST).read_text())
    found, index = load_file(made / FILES["xllm"]), json.loads((source / INDEX).read_text())["weight_map"]
    assert manifest["tensors"].keys() == found.keys()
    for name, entry in manifest["tensors"].items():
        data = found[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest() and entry["bytes"] == len(data)
        assert entry["shape"] == list(everything[entry["source"]["tensor"]].shape)
        assert index[entry["source"]["tensor"]] == entry["source"]["file"]
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((made / name).read_bytes()).hexdigest()
    assert {*manifest["files"], MANIFEST, FILES["xllm"]} == {path.name for path in made.iterdir()}
    assert manifest["source"]["directory"] == str(source) and manifest["total_size"] == plan_export(source).total_size


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path, source: Path) -> None:
    one, other = (export_mtp(plan_export(source), tmp_path / name) for name in ("one", "other"))
    assert all((one / path.name).read_bytes() == path.read_bytes() for path in other.iterdir())


def test_exporting_an_export_changes_nothing(tmp_path: Path, source: Path) -> None:
    """The original layout is a checkpoint without the main model, so it can be read again."""
    once = export_mtp(plan_export(source, "original"), tmp_path / "once")
    twice = export_mtp(plan_export(once, "original"), tmp_path / "twice")
    for name in ("model.safetensors", "config.json", INDEX):
        assert (once / name).read_bytes() == (twice / name).read_bytes()


def test_only_the_shards_of_the_module_are_opened(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "full", TINY, shards=12)
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    needed = {file for name, file in weight_map.items() if name.startswith(LAYER)}
    assert weight_map["model.embed_tokens.weight"] not in needed and len(needed) < 12
    for file in set(weight_map.values()) - needed:
        (source / file).write_bytes(b"opened")
    export_mtp(plan_export(source), tmp_path / "out", verify=True)


def drop_from_index(directory: Path, *names: str) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if name not in names}
    (directory / INDEX).write_text(json.dumps(index))


def test_a_module_without_embedding_and_head_takes_the_models(
    tmp_path: Path, source: Path, everything: dict[str, Tensor]
) -> None:
    """As GLM-4.6."""
    copied = Path(shutil.copytree(source, tmp_path / "copy"))
    drop_from_index(copied, *(LAYER + part for part in SHARED))
    found = load_file(export_mtp(plan_export(copied), tmp_path / "out") / FILES["xllm"])
    assert same_bytes(found["model.embed_tokens.weight"], everything["model.embed_tokens.weight"])
    assert same_bytes(found["model.shared_head.head.weight"], everything["lm_head.weight"])
    dropped = load_file(export_mtp(plan_export(copied, shared="drop"), tmp_path / "less") / FILES["xllm"])
    assert found.keys() - dropped.keys() == {renamed("xllm", part) for part in SHARED}


@pytest.mark.parametrize("layout", FILES)
def test_every_module_is_exported(tmp_path: Path, layout: str) -> None:
    sizes = Sizes(**{**vars(TINY), "num_nextn_predict_layers": 3})
    source = make_checkpoint(tmp_path / "full", sizes, shards=2)
    plan = plan_export(source, layout, "keep")
    assert len(plan.copies) == len({copy.name for copy in plan.copies})
    modules = [name for name, _, _ in entries(sizes) if re.match(r"model\.layers\.[2-9]\.", name)]
    kept = [name for name in modules if layout != "sglang" or not name.endswith(SHARED)]
    assert sorted(copy.source for copy in plan.copies) == sorted(kept)
    export_mtp(plan, tmp_path / "out", verify=True)


@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_modules_of_a_model_quantised_to_int8(tmp_path: Path, source: Path, dtype: str) -> None:
    quantised = quantize(plan_quantize(source, INT8), tmp_path / "int8")
    before = {name: t for file in quantised.glob("*.safetensors") for name, t in load_file(file).items()}
    made = export_mtp(plan_export(quantised, "sglang", dtype), tmp_path / "out", verify=True)
    found = load_file(made / FILES["sglang"])
    part = "mlp.experts.3.up_proj.weight"
    codes, scale = before[LAYER + part], before[LAYER + part + "_scale"]
    assert codes.dtype == torch.int8
    if dtype == "keep":
        assert same_bytes(found[renamed("sglang", part)], codes)
        assert same_bytes(found[renamed("sglang", part) + "_scale"], scale)
    else:
        assert same_bytes(found[renamed("sglang", part)], (codes.float() * scale.float()).to(torch.bfloat16))
    config = json.loads((made / "config.json").read_text())
    assert bool(config.get("quantization_config")) == (dtype == "keep")


# What cannot be written


def test_what_differs_when_it_is_read_back_does_not_appear(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_export(source)

    def spoil(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(export_module, "forget", spoil)
    with pytest.raises(UserError, match=f"Tensor {re.escape(plan.copies[-1].name)} differs"):
        export_mtp(plan, tmp_path / "out", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_files_beside_the_tensors_are_verified_too(tmp_path: Path, source: Path) -> None:
    plan = plan_export(source)
    made = export_mtp(plan, tmp_path / "out")
    verify_export(plan, made)
    (made / "tokenizer.json").write_text("{ }\n")
    with pytest.raises(UserError, match=r"tokenizer\.json differs"):
        verify_export(plan, made)


def test_only_an_earlier_export_is_replaced(tmp_path: Path, source: Path) -> None:
    plan, out = plan_export(source), tmp_path / "out"
    export_mtp(plan, out)
    with pytest.raises(UserError, match="not empty"):
        export_mtp(plan, out)
    export_mtp(plan_export(source, "sglang"), out, overwrite=True)
    assert (out / FILES["sglang"]).exists() and not (out / FILES["xllm"]).exists()
    (out / MANIFEST).unlink()
    with pytest.raises(UserError, match=f"no {MANIFEST}"):
        export_mtp(plan, out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_source_is_never_replaced(tmp_path: Path, source: Path) -> None:
    copied = Path(shutil.copytree(source, tmp_path / "parent" / "copy"))
    plan = plan_export(copied)
    for target in (copied, copied.parent, copied / ".." / "copy"):
        with pytest.raises(UserError, match="is or holds the checkpoint"):
            export_mtp(plan, target, overwrite=True)


def test_a_full_disk_is_noticed_before_and_after(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_export(source)
    with monkeypatch.context() as patch:
        patch.setattr("paceline.convert.export_mtp.SLACK", 1 << 60)
        with pytest.raises(UserError, match="make room"):
            export_mtp(plan, tmp_path / "out")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "write_rest", full)
    with pytest.raises(UserError, match="No space left"):
        export_mtp(plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# The command


def run(*arguments: object) -> Any:
    return CliRunner().invoke(make_app(), ["export-mtp", *map(str, arguments)], catch_exceptions=True)


def test_the_command_exports(tmp_path: Path, source: Path) -> None:
    result = run("--input-dir", source, "--output-dir", tmp_path / "out", "--verify")
    assert result.exit_code == 0, result.output
    assert "wrote and verified 1 MTP module: 44 tensors" in result.output
    verify_export(plan_export(source), tmp_path / "out")


def test_a_dry_run_tells_everything_and_writes_nothing(tmp_path: Path, source: Path) -> None:
    result = run("--input-dir", source, "--output-dir", tmp_path / "out", "--dry-run", "--layout", "sglang")
    assert result.exit_code == 0 and list(tmp_path.iterdir()) == []
    assert "8 x model.layers.0.mlp.experts.*.up_proj.weight  F8_E4M3 [96, 192]" in result.output
    assert "would write 1 MTP module: 74 tensors" in result.output


def test_bad_choices_are_refused(tmp_path: Path, source: Path) -> None:
    for flag in ("--layout", "--dtype", "--shared"):
        result = run("--input-dir", source, "--output-dir", tmp_path / "out", flag, "nonsense")
        assert isinstance(result.exception, UserError) and "choose among" in str(result.exception)
