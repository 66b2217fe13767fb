"""The generated checkpoint is DeepSeek-V3's to the last tensor, and the real size is planned for in a moment."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from make_deepseek_checkpoint import TINY, Sizes, entries, make_checkpoint
from safetensors.torch import load_file

from paceline.checkpoint.reader import Checkpoint
from paceline.convert.export_plan import plan_export

LAYER = "model.layers.61."


def test_counts_are_those_of_the_published_checkpoint() -> None:
    """91,991 tensors; numbers by dtype as its page on the hub shows them, the F32 ones mostly scales."""
    counts: Counter[str] = Counter()
    for _, dtype, shape in entries(Sizes()):
        counts[dtype] += prod(shape)
    assert counts == {"F8_E4M3": 680_571_043_840, "BF16": 3_918_786_560, "F32": 41_555_600}
    assert sum(1 for _ in entries(Sizes())) == 91_991


def test_shapes_are_those_of_the_published_module() -> None:
    module = {name.removeprefix(LAYER): (dtype, shape) for name, dtype, shape in entries(Sizes()) if LAYER in name}
    assert module["self_attn.kv_a_proj_with_mqa.weight"] == ("F8_E4M3", (576, 7168))
    assert module["self_attn.kv_a_proj_with_mqa.weight_scale_inv"] == ("F32", (5, 56))
    assert module["self_attn.q_b_proj.weight"] == ("F8_E4M3", (24576, 1536))
    assert module["self_attn.o_proj.weight"] == ("F8_E4M3", (7168, 16384))
    assert module["eh_proj.weight"] == ("BF16", (7168, 14336))
    assert module["mlp.gate.e_score_correction_bias"] == ("F32", (256,))
    assert module["mlp.experts.255.down_proj.weight"] == ("F8_E4M3", (7168, 2048))


def test_every_shard_is_read_by_safetensors(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "full", TINY, shards=7)
    read = {name: tensor for file in made.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {n: shape for n, _, shape in entries(TINY)}
    assert all(tensor.float().isfinite().all() for tensor in read.values())
    assert len(Checkpoint(made)) == len(read)


def test_the_published_size_is_planned_from_headers(tmp_path: Path) -> None:
    """688 GB in 163 files, as holes: what xLLM's layout holds of it is known without reading a weight."""
    source = make_checkpoint(tmp_path / "full", Sizes(), hollow=True)
    plan = plan_export(source)
    module = [entry for entry in entries(Sizes()) if LAYER in entry[0] and not entry[0].endswith("_scale_inv")]
    assert len(plan.copies) == len(module) == 788
    assert plan.total_size == sum(prod(shape) * (4 if dtype == "F32" else 2) for _, dtype, shape in module)
    assert len({copy.info.file for copy in plan.copies}) < 10
