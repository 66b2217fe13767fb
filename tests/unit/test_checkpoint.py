"""Checkpoints: what is written is read back; what is damaged is refused with one sentence; nothing is half-done."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from paceline.checkpoint.load import load_weights
from paceline.checkpoint.reader import INDEX, SINGLE, Checkpoint
from paceline.checkpoint.writer import write_checkpoint
from paceline.errors import UserError
from paceline.models.mtp import MTPNames

TENSORS = {"a.weight": torch.arange(12.0).view(3, 4), "b.weight": torch.ones(5), "c.weight": torch.zeros(2, 2)}
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.float8_e4m3fn])
shapes = st.lists(st.integers(0, 4), max_size=3)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "one", TENSORS, {"model_type": "x"})


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "many", TENSORS, {}, shard_bytes=40)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(shapes, dtypes), max_size=6), st.integers(1, 200))
def test_what_is_written_is_read(specification: dict[str, tuple[list[int], torch.dtype]], shard_bytes: int) -> None:
    tensors = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in specification.items()}
    tensors.pop("__metadata__", None)
    with tempfile.TemporaryDirectory() as parent:
        checkpoint = Checkpoint(write_checkpoint(f"{parent}/out", tensors, {}, shard_bytes=shard_bytes))
        assert set(checkpoint) == set(tensors)
        for name, tensor in tensors.items():
            assert checkpoint[name].shape == tuple(tensor.shape)
            found = checkpoint.tensor(name)
            assert found.dtype == tensor.dtype and torch.equal(found.float(), tensor.float())


def test_layout_is_what_others_read(saved: Path, sharded: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", SINGLE]
    assert json.loads((saved / "config.json").read_text()) == {"model_type": "x"}
    index = json.loads((sharded / INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * (12 + 5 + 4)
    assert index["weight_map"]["a.weight"] == "model-00001-of-00002.safetensors"
    header = (saved / SINGLE).read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"] == {"format": "pt"}


def test_views_that_share_memory_and_order_are_written(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    views = {"rows": whole[:2], "columns": whole[:, 1:3], "transposed": whole.T, "again": whole}
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "out", views, {}))
    assert all(torch.equal(checkpoint.tensor(name), view) for name, view in views.items())


def test_headers_are_enough_for_names_and_shapes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.checkpoint.reader.safe_open", None)
    assert {name: info.shape for name, info in Checkpoint(saved).items()} == {
        n: tuple(t.shape) for n, t in TENSORS.items()
    }


# What is damaged


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_is_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as parent:
        file = write_checkpoint(f"{parent}/out", TENSORS, {}) / SINGLE
        whole = file.read_bytes()
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(UserError, match=r"model\.safetensors.*again"):
            Checkpoint(file.parent)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_header_is_refused_or_harmless(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as parent:
        file = write_checkpoint(f"{parent}/out", TENSORS, {}) / SINGLE
        content = bytearray(file.read_bytes())
        places = st.integers(0, 7 + int.from_bytes(content[:8], "little"))
        for place in data.draw(st.lists(places, min_size=1, max_size=3)):
            content[place] = data.draw(st.integers(0, 255))
        file.write_bytes(content)
        try:
            checkpoint = Checkpoint(file.parent)
            for name in checkpoint:
                checkpoint.tensor(name)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("header", ["[]", "{", "7", '{"a": 3}', '{"a": {"dtype": "F32", "shape": [1]}}', "[" * 100_000])
def test_headers_that_are_no_headers(tmp_path: Path, header: str) -> None:
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(UserError, match="unreadable header"):
        Checkpoint(tmp_path)


def test_a_header_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / SINGLE).open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # sparse
    with pytest.raises(UserError, match="header of 200000000 bytes"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../one/model.safetensors", "/etc/passwd", "..", "a/b.safetensors", "..\\x.safetensors", ""]
)
def test_an_index_cannot_point_outside(saved: Path, sharded: Path, shard: str) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a.weight": shard}}))
    with pytest.raises(UserError, match="do not use it"):
        Checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 3}', "\xff"])
def test_an_index_that_is_none(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="not an index"):
        Checkpoint(sharded)


def test_a_link_cannot_lead_outside(saved: Path, sharded: Path, tmp_path: Path) -> None:
    for name in (SINGLE, INDEX, "model-00001-of-00002.safetensors"):
        home = saved if name == SINGLE else sharded
        (home / name).rename(tmp_path / name)
        (home / name).symlink_to(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} is a link that leads out"):
            Checkpoint(home)
        (home / name).unlink()
        (tmp_path / name).rename(home / name)
    (saved / "inside.safetensors").symlink_to(SINGLE)
    (tmp_path / "name").symlink_to(saved)
    assert set(Checkpoint(tmp_path / "name")) == set(TENSORS)


def test_a_download_caches_links_are_followed(saved: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (saved / SINGLE).rename(blobs / "5e")
    (snapshot / SINGLE).symlink_to("../../blobs/5e")
    assert set(Checkpoint(snapshot)) == set(TENSORS)


def test_the_only_file_may_have_another_name(saved: Path) -> None:
    (saved / SINGLE).rename(saved / "mtp_layer_parameters.safetensors")
    assert set(Checkpoint(saved)) == set(TENSORS)
    (saved / "second.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="neither"):
        Checkpoint(saved)


def test_missing_things_are_named(tmp_path: Path, sharded: Path) -> None:
    with pytest.raises(UserError, match="no model directory"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither"):
        Checkpoint(tmp_path)
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["z"] = "model-00001-of-00002.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="lacks tensor z"):
        Checkpoint(sharded)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing"):
        Checkpoint(sharded)


def test_unknown_tensor(saved: Path) -> None:
    with pytest.raises(UserError, match="Tensor zebra"):
        Checkpoint(saved).tensor("zebra")


# Loading


def views(**changes: Tensor | None) -> dict[str, Tensor]:
    empty = {name: torch.full_like(tensor, -1) for name, tensor in TENSORS.items()}
    return {n: t for n, t in (empty | {f"{n}.weight": t for n, t in changes.items()}).items() if t is not None}


def test_load_fills_every_view_and_converts(sharded: Path) -> None:
    found = views(a=torch.zeros(3, 4, dtype=torch.bfloat16))
    load_weights(found, Checkpoint(sharded))
    assert found["a.weight"].dtype == torch.bfloat16
    assert all(torch.equal(found[name].float(), TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d": torch.ones(1), "e": torch.ones(1)}, r"Tensor d\.weight \(and 1 more\) is missing"),
        ({"b": None}, r"Tensor b\.weight has no place"),
        ({"a": torch.ones(4, 3)}, r"a\.weight has shape \[3, 4\].*\[4, 3\]"),
    ],
)
def test_load_accounts_for_every_tensor_before_it_copies(saved: Path, changes: dict[str, Tensor], words: str) -> None:
    found = views(**changes)
    before = {name: tensor.clone() for name, tensor in found.items()}
    with pytest.raises(UserError, match=words):
        load_weights(found, Checkpoint(saved))
    assert all(torch.equal(found[name], before[name]) for name in found)


def test_load_ignores_only_what_it_is_told(saved: Path) -> None:
    load_weights(views(b=None), Checkpoint(saved), ignored=lambda name: name == "b.weight")


@pytest.mark.parametrize("shape", [(128, 128), (300, 200), (576, 130), (1, 1)])
def test_fp8_blocks_are_dequantised(tmp_path: Path, shape: tuple[int, int]) -> None:
    weight = (torch.randn(shape) * 50).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128)) + 0.1
    save_file({"x.weight": weight, "x.weight_scale_inv": scale}, tmp_path / SINGLE)
    view = {"x.weight": torch.empty(shape)}
    load_weights(view, Checkpoint(tmp_path))
    expected = torch.empty(shape)
    for i in range(shape[0]):
        for j in range(0, shape[1], 128):
            expected[i, j : j + 128] = weight[i, j : j + 128].float() * scale[i // 128, j // 128]
    assert torch.equal(view["x.weight"], expected)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}, "without x.weight_scale_inv"),
        ({"x.weight": torch.ones(4, 4, dtype=torch.int8)}, "without x.weight_scale:"),
        ({"x.weight": torch.ones(4, 4, dtype=torch.int32)}, "unsupported type I32"),
        (
            {"x.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "x.weight_scale_inv": torch.ones(4, 1)},
            "one scale for each",
        ),
    ],
)
def test_quantised_weights_that_cannot_be_read(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(UserError, match=words):
        load_weights({"x.weight": torch.empty(4, 4)}, Checkpoint(tmp_path))


# Writing


class Refuses(Tensor):
    """Fails in the middle of a write."""

    def cpu(self) -> Tensor:  # type: ignore[override]
        raise OSError("no space left")

    detach = lambda self: self  # noqa: E731


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    bad = {**TENSORS, "d": torch.ones(2).as_subclass(Refuses)}
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path / "out", bad, {}, shard_bytes=40)
    assert list(tmp_path.iterdir()) == []


def test_overwriting_is_asked_for_and_all_or_nothing(saved: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        write_checkpoint(saved, TENSORS, {})
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(saved, {"d": torch.ones(2).as_subclass(Refuses)}, {}, overwrite=True)
    assert set(Checkpoint(saved)) == set(TENSORS)
    write_checkpoint(saved, {"d": torch.ones(2)}, {}, overwrite=True, extra_files={"README.md": "é", "x.bin": b"\0"})
    assert set(Checkpoint(saved)) == {"d"}
    assert (saved / "README.md").read_text(encoding="utf-8") == "é" and (saved / "x.bin").read_bytes() == b"\0"
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_only_a_checkpoint_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    with pytest.raises(UserError, match="something else than a checkpoint"):
        write_checkpoint(tmp_path / "letters", TENSORS, {}, overwrite=True)
    with pytest.raises(UserError, match="no directory"):
        write_checkpoint(tmp_path / "letters" / "love.txt", TENSORS, {}, overwrite=True)
    assert (tmp_path / "letters" / "love.txt").read_text() == "dear"


@pytest.mark.parametrize("names", [MTPNames(), MTPNames("model.mtp_layers.{depth}.", {"enorm": "token_layernorm"})])
@pytest.mark.parametrize("part", ["enorm.weight", "self_attn.o_proj.weight", "enormous.weight"])
def test_a_modules_name_is_found_again(names: MTPNames, part: str) -> None:
    assert [names.find(names.name(d, part, 61), 61) for d in range(3)] == [(d, part) for d in range(3)]
    assert names.find("model.layers.60." + part, 61) is None and names.find(part, 61) is None


def test_a_pointer_is_not_called_damaged(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4302345312\n"
    (tmp_path / SINGLE).write_text(pointer)
    with pytest.raises(UserError, match="git lfs pull"):
        Checkpoint(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not tell what is mapped")
def test_released_files_are_mapped_no_more_and_can_be_read_again(tmp_path: Path) -> None:
    """A checkpoint larger than memory is quantised file by file."""
    save_file({"x": torch.arange(40.0)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)

    def mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    assert checkpoint.tensor("x").sum() == 780 and mapped()
    checkpoint.release()
    assert not mapped()
    assert checkpoint.tensor("x").sum() == 780
