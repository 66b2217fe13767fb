"""What `paceline inspect` tells is true: of the bundled model, of DeepSeek-V3's own sizes, of exports, of strangers."""

from __future__ import annotations

import contextlib
import cProfile
import json
import os
import pstats
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import make_deepseek_checkpoint as maker
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import random_weights, tiny_config, write_tiny
from paceline.checkpoint.layouts import LAYOUTS
from paceline.checkpoint.reader import INDEX, SINGLE
from paceline.checkpoint.resolve import bundled_model
from paceline.cli.inspect import drafters, short, size
from paceline.config import ModelConfig
from paceline.convert.export_mtp import export_mtp
from paceline.convert.export_plan import plan_export
from paceline.convert.quantize import plan_quantize, quantize
from paceline.drafters import drafter_names
from paceline.errors import UserError
from paceline.formats import FORMATS, Format
from paceline.inspection.report import Report, inspect
from paceline.loaded import Loaded


def test_the_bundled_model_is_sound_and_drafts() -> None:
    report = inspect(bundled_model())
    assert report.warnings == () and report.usable_modules == 3 and drafters(report) == drafter_names()
    assert report.target is not None and report.mtp is not None
    model = Loaded.from_dir(bundled_model()).target
    assert report.target.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert report.target.kv_bytes == 1000 * model.cache.numbers_per_token * 2
    file = (bundled_model() / SINGLE).stat().st_size
    assert file - 100_000 < report.target.bytes_stored + report.mtp.bytes_stored < file


def test_active_parameters_are_those_that_a_token_meets(tmp_path: Path) -> None:
    """Against the same model with only the chosen experts, and without an embedding."""
    target = inspect(write_tiny(tmp_path / "moe")).target
    few = ModelConfig.from_dict(tiny_config(n_routed_experts=2, n_group=1, num_nextn_predict_layers=0))
    weights = random_weights(few)
    routers = 2 * (8 - 2) * (64 + 1)  # a token meets the rows of all experts, to choose among them
    expected = sum(weight.numel() for name, weight in weights.items() if "embed_tokens" not in name) + routers
    assert target is not None and target.active_parameters == expected


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """DeepSeek-V3 as published: 163 shards with their headers, and nothing but holes where 689 GB would be."""
    directory = maker.make_checkpoint(tmp_path_factory.mktemp("models") / "v3", maker.Sizes(), hollow=True)
    yield directory
    for file in directory.glob("*.safetensors"):
        file.unlink()


def test_deepseek_v3_has_its_published_sizes(deepseek: Path) -> None:
    """671 B parameters, 36.6 B of them active, 11.6 B in the MTP module (README_WEIGHTS of the public checkpoint: 11.5
    without eh_proj), a latent of 576 numbers a layer, one chat template forgotten."""
    report = inspect(deepseek)
    assert report.target is not None and report.mtp is not None
    assert (short(report.target.parameters), short(report.target.active_parameters or 0)) == ("671.0 B", "36.6 B")
    assert (short(report.mtp.parameters), short(report.mtp.active_parameters or 0)) == ("11.6 B", "1.6 B")
    assert report.target.kv_bytes == 1000 * 61 * 576 * 2 and report.mtp.kv_bytes == 1000 * 576 * 2
    entries = list(maker.entries(maker.Sizes()))
    assert sum(stored.tensors for stored in report.stored.values()) == len(entries) == 91_991
    assert report.target.bytes_stored + report.mtp.bytes_stored == sum(map(maker.size_of, entries))
    assert report.quantization == "fp8, 128x128 blocks" and report.context == 163_840
    assert [module.complete for module in report.modules] == [True]
    assert len(report.warnings) == 1 and "chat template" in report.warnings[0]


def test_163_shards_take_few_calls_a_tensor(deepseek: Path) -> None:
    """Two seconds are promised, half of which is `import torch`. Counted, for clocks are noisy: 26 calls of functions,
    built-in ones too; to read the index or the headers once more would be 10."""
    tensors = len(json.loads((deepseek / INDEX).read_text())["weight_map"])
    profile = cProfile.Profile()
    profile.runcall(inspect, deepseek)
    assert tensors > 90_000 and pstats.Stats(profile).total_calls < 32 * tensors  # type: ignore[attr-defined]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_an_export_is_known_by_its_layout(layout: str, dtype: str, tmp_path: Path) -> None:
    source = maker.make_checkpoint(tmp_path / "full", maker.TINY, shards=2)
    whole = inspect(source)
    report = inspect(export_mtp(plan_export(source, layout, dtype), tmp_path / "draft"))
    assert (report.layout, report.target, report.warnings) == (layout, None, ())
    assert [module.complete for module in report.modules] == [True] and drafters(report) == ["mtp"]
    assert report.mtp is not None and whole.mtp is not None
    assert report.mtp.parameters == whole.mtp.parameters and report.mtp.kv_bytes == whole.mtp.kv_bytes
    assert (report.quantization is None) == (dtype == "bfloat16")


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_what_quantize_writes_is_sound(form: Format, tiny_model: Path, tmp_path: Path) -> None:
    report, before = inspect(quantize(plan_quantize(tiny_model, form), tmp_path / "out")), inspect(tiny_model)
    assert report.warnings == () and report.usable_modules == 2
    assert report.quantization is not None and report.quantization.startswith(form.name)
    assert report.target is not None and before.target is not None
    assert report.target.parameters == before.target.parameters
    assert report.target.bytes_stored < before.target.bytes_stored == before.target.bytes_in_dtype + 2 * 8 * 2


def test_a_damaged_export_cannot_draft(tmp_path: Path) -> None:
    source = maker.make_checkpoint(tmp_path / "full", maker.TINY, shards=2)
    draft = export_mtp(plan_export(source, "sglang"), tmp_path / "draft")
    file = next(draft.glob("*.safetensors"))
    tensors = load_file(file)
    del tensors["model.layers.0.hnorm.weight"]
    save_file(tensors, file)
    (draft / INDEX).unlink()
    report = inspect(draft)
    assert report.usable_modules == 0 and drafters(report) == []
    assert "MTP module 1 of 1 lacks tensor model.layers.0.hnorm.weight." in report.warnings


def test_only_modules_before_the_first_gap_can_draft(tiny_model: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_model / SINGLE)
    for broken, usable in ((3, 0), (4, 1)):
        directory = write_tiny(tmp_path / str(broken))
        kept = {name: tensor for name, tensor in tensors.items() if name != f"model.layers.{broken}.eh_proj.weight"}
        save_file(kept, directory / SINGLE)
        assert inspect(directory).usable_modules == usable


def test_of_a_stranger_there_are_types_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_embd": 8, "torch_dtype": "float16"}')
    tensors = {"wte.weight": torch.zeros(10, 8, dtype=torch.float16), "h.0.q": torch.zeros(4, dtype=torch.int32)}
    save_file(tensors, tmp_path / SINGLE)
    report = inspect(tmp_path)
    assert not report.supported and drafters(report) == [] and report.modules == () and report.context is None
    assert report.target is not None and report.target.active_parameters is None and report.target.kv_bytes is None
    assert (report.target.parameters, report.target.bytes_stored) == (84, 176)
    assert {word: kind.numbers for word, kind in report.stored.items()} == {"F16": 80, "I32": 4}
    assert "known families: deepseek_v3" in report.warnings[0]


values = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=3) | st.just(10**40)
values |= st.lists(st.integers(0, 2), max_size=2) | st.dictionaries(st.sampled_from(["type", "factor"]), st.integers())


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from([*tiny_config(), "quantization_config", "rope_scaling"]), values, max_size=3))
def test_no_config_breaks_it(tiny_model: Path, changes: dict[str, object]) -> None:
    """Whatever a stranger wrote into config.json, there is a report, or one sentence."""
    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent)
        shutil.copy(tiny_model / SINGLE, directory)
        (directory / "config.json").write_text(json.dumps(tiny_config() | changes))
        with contextlib.suppress(UserError):
            assert json.dumps(inspect(directory).to_dict())


names = st.sampled_from([name for name, _, _ in maker.entries(maker.TINY)])
places = st.sampled_from(["model.layers.1.mlp.experts.", "model.layers.2.", "model.norm.weight_scale", "x.experts."])
names |= st.builds(str.__add__, places, st.sampled_from(["9" * 5000, "\u0663", "-1", "", "61.a", "."]))
edits = st.none() | st.tuples(
    st.sampled_from(["BF16", "F8_E4M3", "I8", "I32", "WHAT"]), st.lists(st.integers(0, 9), max_size=3)
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, edits, max_size=5), st.booleans(), st.integers(0, 3))
def test_no_tensors_break_it(changes: dict[str, tuple[str, list[int]] | None], everything: bool, modules: int) -> None:
    """Tensors that lack, are of any type and shape, or have odd names; with the others there, or alone."""
    tensors = {name: (dtype, list(shape)) for name, dtype, shape in maker.entries(maker.TINY) if everything}
    kept = {name: entry for name, entry in (tensors | changes).items() if entry is not None}
    header, end = {}, 0
    for name, (dtype, shape) in kept.items():
        start, end = end, end + prod(shape) * {"BF16": 2, "F32": 4, "I32": 4}.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent)
        (directory / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
        config = maker.config_json(maker.TINY) | {"num_nextn_predict_layers": modules}
        (directory / "config.json").write_text(json.dumps(config))
        assert json.dumps(inspect(directory).to_dict())


def test_fields_that_only_a_module_reads(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "odd")
    config = tiny_config(first_k_dense_replace=3, n_shared_experts="two")
    (directory / "config.json").write_text(json.dumps(config))
    report = inspect(directory)
    assert not report.supported and "config.json does not describe a deepseek_v3 model" in report.warnings[0]


def test_numbers_are_short() -> None:
    assert [short(n) for n in (0, 999, 1000, 12_204_344, 671_026_419_200)] == ["0", "999", "1.0 k", "12.2 M", "671.0 B"]
    assert [size(n) for n in (0, 999, 70_272_000, 2 * 10**12)] == ["0 B", "999 B", "70.3 MB", "2000.0 GB"]


@pytest.fixture
def paceline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> _Run:
    return _Run(capsys, monkeypatch)


class _Run:
    """Runs `paceline inspect` in this process: its exit code and all that it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch
        monkeypatch.setenv("COLUMNS", "200")

    def __call__(self, *words: str | Path) -> tuple[int, str]:
        from paceline.cli import main

        self.monkeypatch.setattr(sys, "argv", ["paceline", "inspect", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = self.capsys.readouterr()
        return int(ended.value.code or 0), out + err


def test_it_is_printed(paceline: _Run, tiny_model: Path, tmp_path: Path) -> None:
    code, text = paceline()
    assert code == 0 and re.search(r"^drafters +mtp, ngram, none *$", text, re.M) and "paceline-16m" in text
    code, text = paceline(tiny_model)
    assert code == 0 and "2 of 2 complete" in text and "warning" not in text
    broken = write_tiny(tmp_path / "broken", num_nextn_predict_layers=1)
    kept = {name: t for name, t in load_file(tiny_model / SINGLE).items() if "layers.3.eh_proj" not in name}
    save_file(kept, broken / SINGLE)
    code, text = paceline(broken)
    assert code == 0 and "0 of 1 complete; incomplete: 1; not in config.json: 2" in text and text.count("warning:") == 2
    assert re.search(r"^drafters +ngram, none *$", text, re.M)


def test_names_from_files_do_not_steer_the_terminal(paceline: _Run, tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "odd")
    tensors = load_file(directory / SINGLE)
    save_file(tensors | {"[red]\x1b]0;evil\x07": torch.zeros(2, dtype=torch.bfloat16)}, directory / SINGLE)
    code, text = paceline(directory)
    assert code == 0 and "\x1b" not in text and "warning: Tensor [red]?]0;evil? has no place" in text


def test_json_has_the_documented_fields(paceline: _Run, tiny_model: Path) -> None:
    code, text = paceline(tiny_model, "--json")
    told = json.loads(text)
    documented = Path(__file__).parents[2].joinpath("docs", "inspect.md").read_text(encoding="utf-8")
    assert code == 0 and set(re.findall(r"^\| `(\w+)` \|", documented, re.M)) == set(told)
    assert set(Report.__dataclass_fields__) == set(told) - {"drafters", "usable_modules"}
    nested = {key for part in (told["target"], told["modules"][0], told["stored"]["BF16"]) for key in part}
    assert all(f"`{key}`" in documented for key in nested)
    assert prod(told["stored"]["BF16"].values()) > 0


@pytest.mark.parametrize("spoil", ["missing", "truncated", "no config", "deep config"])
def test_what_cannot_be_opened_is_one_sentence(spoil: str, paceline: _Run, tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "bad")
    if spoil == "truncated":
        os.truncate(directory / SINGLE, 1000)
    elif spoil == "deep config":
        (directory / "config.json").write_text("[" * 100_000)
    else:
        (directory / {"missing": SINGLE, "no config": "config.json"}[spoil]).unlink()
    code, text = paceline(directory)
    assert code == 2 and text.startswith("paceline: ") and text.count("\n") == 1
