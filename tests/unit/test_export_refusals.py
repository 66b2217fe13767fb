"""What is wrong with a checkpoint is told in one sentence that names the tensor, before anything is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_deepseek_checkpoint import TINY, make_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from paceline.checkpoint.reader import INDEX
from paceline.cli.main import main
from paceline.convert.export_mtp import export_mtp
from paceline.convert.export_plan import plan_export
from paceline.errors import UserError

LAYER = "model.layers.2."
EXPERT = LAYER + "mlp.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("deepseek") / "full", TINY, shards=3)


@pytest.fixture
def copied(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def edit_index(directory: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = read_json(directory / INDEX)
    change(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index))


def edit_config(directory: Path, **fields: object) -> None:
    (directory / "config.json").write_text(json.dumps(read_json(directory / "config.json") | fields))


def put(directory: Path, part: str, tensor: Tensor | None) -> None:
    """One tensor of the module as it should be, None for none; a new one in the file that has the norms."""
    name, weight_map = LAYER + part, read_json(directory / INDEX)["weight_map"]
    shard = directory / weight_map.get(name, weight_map[LAYER + "enorm.weight"])
    content = {other: value for other, value in load_file(shard).items() if other != name}
    save_file(content if tensor is None else {**content, name: tensor}, shard)
    edit_index(directory, lambda index: index.pop(name) if tensor is None else index.update({name: shard.name}))


def a(name: str, tensor: Tensor | None) -> Callable[[Path], None]:
    return lambda directory: put(directory, name, tensor)


def truncate(directory: Path) -> None:
    shard = directory / read_json(directory / INDEX)["weight_map"][EXPERT]
    os.truncate(shard, shard.stat().st_size - 1)


def link_out(directory: Path) -> None:
    shard = directory / read_json(directory / INDEX)["weight_map"][EXPERT]
    shard.rename(directory.parent / "elsewhere.safetensors")
    shard.symlink_to(directory.parent / "elsewhere.safetensors")


def link_tokenizer_out(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to("/etc/hostname")


def scale_of(up_proj: Tensor | None) -> Callable[[Path], None]:
    return a("mlp.experts.3.up_proj.weight_scale_inv", up_proj)


def weight(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(rows, columns).to(dtype)


def no_modules(directory: Path) -> None:
    edit_index(directory, lambda index: [index.pop(name) for name in list(index) if name.startswith(LAYER)])


FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
FIRST = "model.embed_tokens.weight"
NORM, EXTRA, SCALE = LAYER + r"enorm\.weight", LAYER + r"mlp\.extra", EXPERT + "_scale_inv"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (a("enorm.weight", None), rf"Tensor {NORM} is missing"),
    "expert gap": (a("mlp.experts.3.up_proj.weight", None), rf"Tensor {EXPERT} is missing"),
    "extra": (a("mlp.extra.weight", torch.ones(3)), rf"Tensor {EXTRA}\.weight has no place"),
    "extra expert": (
        a("mlp.experts.8.up_proj.weight", weight(96, 192, BF16)),
        rf"Tensor {LAYER}mlp\.experts\.8\.up_proj\.weight has no place",
    ),
    "extra module": (
        lambda directory: edit_index(
            directory, lambda index: index.update({"model.layers.3.enorm.weight": index[LAYER + "enorm.weight"]})
        ),
        r"model\.layers\.3\.enorm\.weight",
    ),
    "wrong shape": (a("enorm.weight", torch.ones(191).to(BF16)), rf"Tensor {NORM} has shape \[191\].*\[192\]"),
    "wrong shape of an expert": (
        a("mlp.experts.3.up_proj.weight", weight(192, 96, FP8)),
        rf"Tensor {EXPERT} has shape \[192, 96\].*\[96, 192\]",
    ),
    "integers": (a("enorm.weight", torch.ones(192, dtype=torch.int32)), rf"Tensor {NORM} has the unsupported type I32"),
    "int8 alone": (a("enorm.weight", torch.ones(192, dtype=torch.int8)), rf"Tensor {NORM} \(I8\) comes without"),
    "no scales": (scale_of(None), rf"Tensor {EXPERT} \(F8_E4M3\) comes without"),
    "scales of a bf16 weight": (
        a("mlp.experts.3.up_proj.weight", weight(96, 192, BF16)),
        rf"{EXPERT} .*is not FP8, yet has {SCALE}",
    ),
    "scales of nothing": (a("mlp.extra.weight_scale_inv", torch.ones(1, 1)), rf"{EXTRA}\.weight_scale_inv has no"),
    "scales of another shape": (scale_of(torch.ones(2, 1)), rf"Tensor {SCALE} has F32 \[2, 1\]"),
    "integer scales": (scale_of(torch.ones(1, 2, dtype=torch.int32)), rf"Tensor {SCALE} has I32"),
    "a scale that is infinite": (scale_of(torch.tensor([[1.0, float("inf")]])), rf"Tensor {SCALE}.*not finite"),
    "a scale that is no number": (scale_of(torch.tensor([[1.0, float("nan")]])), rf"Tensor {SCALE}.*not finite"),
    "truncated shard": (truncate, r"model-0000\d-of-000003\.safetensors is truncated.*tensor lm_head\.weight is cut"),
    "missing file": (
        lambda directory: edit_index(directory, lambda index: index.update({EXPERT: "model-9.safetensors"})),
        rf"model-9\.safetensors is missing .* for tensor {EXPERT}",
    ),
    "file of a main tensor missing": (
        lambda directory: edit_index(directory, lambda index: index.update({"x": "model-9.safetensors"})),
        r"model-9\.safetensors is missing",
    ),
    "promised in vain": (
        lambda directory: edit_index(directory, lambda index: index.update({EXPERT: index[FIRST]})),
        rf"lacks tensor {EXPERT}",
    ),
    "path traversal": (
        lambda directory: edit_index(directory, lambda index: index.update({EXPERT: "../x.safetensors"})),
        rf"for tensor {EXPERT}, no .*safetensors file beside it",
    ),
    "absolute path": (
        lambda directory: edit_index(directory, lambda index: index.update({EXPERT: "/tmp/x.safetensors"})),
        "no .*safetensors file beside it",
    ),
    "a link out": (link_out, "leads out of its directory"),
    "a tokenizer that is a link out": (link_tokenizer_out, r"tokenizer\.json is a link that leads out"),
    "no modules in the configuration": (
        lambda directory: edit_config(directory, num_nextn_predict_layers=0),
        r"num_nextn_predict_layers is 0",
    ),
    "no modules in the files": (
        no_modules,
        rf"Tensor {NORM} \(and \d+ more\) is missing .*saved without its MTP modules",
    ),
    "fewer modules than the configuration says": (
        lambda directory: edit_config(directory, num_nextn_predict_layers=2),
        r"Tensor model\.layers\.3\.enorm\.weight \(and \d+ more\) is missing",
    ),
    "another family": (lambda directory: edit_config(directory, model_type="zebra"), "zebra.*known families"),
    "a family without modules": (lambda directory: edit_config(directory, model_type="llama"), "no MTP modules|num_"),
    "no configuration": (lambda directory: (directory / "config.json").unlink(), r"no config\.json"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_one_sentence_and_nothing_written(copied: Path, what: str) -> None:
    spoil, words = BAD[what]
    spoil(copied)
    before = sorted(copied.parent.iterdir())
    with pytest.raises(UserError, match=words) as refused:
        export_mtp(plan_export(copied), copied.parent / "out")
    text = str(refused.value)
    assert "\n" not in text and text.endswith(".")
    assert sorted(copied.parent.iterdir()) == before


def test_what_is_spoilt_here_is_good_otherwise(copied: Path) -> None:
    export_mtp(plan_export(copied), copied.parent / "out", verify=True)


def test_embedding_and_head_are_not_looked_at_when_dropped(copied: Path) -> None:
    put(copied, "embed_tokens.weight", torch.ones(2))
    with pytest.raises(UserError, match=r"embed_tokens\.weight has shape"):
        plan_export(copied)
    export_mtp(plan_export(copied, shared="drop"), copied.parent / "out")


def test_a_computed_buffer_is_passed_over(copied: Path) -> None:
    """Old checkpoints keep the rotary frequencies."""
    before = plan_export(copied).copies
    put(copied, "self_attn.rotary_emb.inv_freq", torch.ones(8))
    assert {copy.name for copy in plan_export(copied).copies} == {copy.name for copy in before}


def test_unquantised_modules_of_a_quantised_model(copied: Path) -> None:
    """Their configuration must not say that they are FP8."""
    index = read_json(copied / INDEX)["weight_map"]
    for shard in {file for name, file in index.items() if name.startswith(LAYER)}:
        content = load_file(copied / shard)
        ours = {name for name in content if name.startswith(LAYER)}
        scales = {name for name in ours if name.endswith("_scale_inv")}
        plain = {name: t.to(BF16) if name in ours and t.dtype == FP8 else t for name, t in content.items()}
        save_file({name: tensor for name, tensor in plain.items() if name not in scales}, copied / shard)
    edit_index(copied, lambda index: [index.pop(n) for n in list(index) if n.startswith(LAYER) and n.endswith("_inv")])
    plan = plan_export(copied, "sglang")
    assert "F8_E4M3" not in {copy.dtype for copy in plan.copies} and not plan.draft_config.get("quantization_config")


def test_a_cache_of_the_hub_is_links_and_good(copied: Path) -> None:
    repository = copied.parent / "models--x--y"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir()
    for number, path in enumerate(copied.iterdir()):
        path.rename(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    export_mtp(plan_export(snapshot), copied.parent / "out", verify=True)


def test_the_command_says_it_and_ends_with_2(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(copied)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["paceline", "export-mtp", "--input-dir", str(copied), "--output-dir", "nowhere"])
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("paceline: ") and told.count("\n") == 1
