"""Quantised models: what is swapped, that all ways to load are one, what a written checkpoint says, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import MTP_FAMILIES, tiny_config, write_tiny
from paceline.cache.dense import DenseAttend
from paceline.checkpoint.quantization import announce, stored_format
from paceline.checkpoint.reader import INDEX, Checkpoint
from paceline.checkpoint.writer import write_checkpoint
from paceline.cli import main as cli
from paceline.config import ModelConfig
from paceline.convert.quantize import plan_quantize, quantize
from paceline.errors import UserError
from paceline.formats import FORMATS, FP8, INT8, Format
from paceline.layers.basic import Linear
from paceline.layers.quant import QuantLinear, QuantMoE, quantise_modules
from paceline.llm import LLM
from paceline.models import build_model
from paceline.models.decoder import DecoderModel
from paceline.models.meta import laid_out
from paceline.models.mtp import MTP
from paceline.request import SamplingParams
from paceline.runtime.build import load_mtp, load_target

PROMPT = "the quick brown fox"
LLAMA: dict[str, Any] = dict(
    model_type="llama", num_key_value_heads=2, head_dim=32, num_nextn_predict_layers=0, attention_bias=True
)
QWEN3_MOE = LLAMA | dict(model_type="qwen3_moe", attention_bias=False, num_experts=8, moe_intermediate_size=64)
FAMILIES = MTP_FAMILIES | {"qwen3_moe": QWEN3_MOE, "llama": LLAMA, "llama tied": LLAMA | dict(tie_word_embeddings=True)}
formats = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
families = pytest.mark.parametrize("family", FAMILIES)


def load(path: Path, quantization: str | None = None) -> list[DecoderModel | MTP]:
    target = load_target(path, quantization=quantization)
    return [target, load_mtp(path, target)] if target.config.num_nextn_predict_layers else [target]


def written(source: Path, target: Path, form: Format) -> Path:
    return quantize(plan_quantize(source, form), target)


@torch.inference_mode()
def logits(model: DecoderModel) -> Tensor:
    tokens = torch.arange(24) * 7 % 300
    attend = DenseAttend(torch.zeros(1, 24, dtype=torch.int64))
    return model.logits(model(tokens, torch.arange(24), attend))


@formats
@families
def test_a_written_checkpoint_loads_as_its_source_quantised(family: str, form: Format, tmp_path: Path) -> None:
    """Bit for bit, target and MTP modules, whether it was quantised before or while loading."""
    source = write_tiny(tmp_path / "in", **FAMILIES[family])
    out = written(source, tmp_path / "out", form)
    for ours, theirs in zip(load(source, form.name), load(out, form.name), strict=True):
        found, expected = ours.state_dict(), theirs.state_dict()
        assert found.keys() == expected.keys()
        assert {tensor.dtype for tensor in found.values()} >= {form.dtype, torch.float32, torch.bfloat16}
        for name, tensor in found.items():
            same = tensor.float() == expected[name].float()
            assert same.all() and tensor.dtype == expected[name].dtype, name
    assert sum(file.stat().st_size for file in out.glob("*.safetensors")) < 0.9 * sum(
        file.stat().st_size for file in source.glob("*.safetensors")
    )


@families
def test_fp8_in_memory_says_what_fp8_made_plain_says(family: str, tmp_path: Path) -> None:
    """On a CPU the weights are the same bf16 numbers, and so are the logits. What the default loads is made plain."""
    out = written(write_tiny(tmp_path / "in", **FAMILIES[family]), tmp_path / "out", FP8)
    held, plain, default = load(out, "fp8")[0], load(out, "none")[0], load(out)[0]
    assert isinstance(held, DecoderModel) and isinstance(plain, DecoderModel) and isinstance(default, DecoderModel)
    assert (held.form, plain.form, default.form) == (FP8, None, None)
    assert type(held.layers[0].self_attn.o_proj) is QuantLinear  # type: ignore[union-attr]
    assert type(default.layers[0].self_attn.o_proj) is Linear  # type: ignore[union-attr]
    plain.layers.apply(unfused)
    assert torch.equal(logits(held), logits(plain))


def unfused(module: torch.nn.Module) -> None:
    """Fused products round less often, and those of packed weights may sum in another order than torch's; a quantised
    model has none."""
    for name in ("_fused", "_compiled", "_together", "_packed", "_pages"):
        if hasattr(module, name):
            setattr(module, name, None)


@families
def test_int8_says_what_its_dequantised_weights_say(family: str, tmp_path: Path) -> None:
    """In float32, where there is no rounding between the two."""
    out = written(write_tiny(tmp_path / "in", **FAMILIES[family], dtype="float32"), tmp_path / "out", INT8)
    held, plain = load(out)[0], load(out, "none")[0]
    assert isinstance(held, DecoderModel) and isinstance(plain, DecoderModel)
    assert held.form is INT8 and plain.form is None
    assert logits(plain).std() > 0.3
    torch.testing.assert_close(logits(held), logits(plain), rtol=1e-4, atol=1e-4)


@formats
def test_what_is_swapped(tiny_model: Path, form: Format) -> None:
    config = ModelConfig.from_dir(tiny_model)
    with laid_out(config.dtype):
        model = build_model(config)
        quantise_modules(model, form)
    plain = {name.split(".")[-1] for name, part in model.named_modules() if type(part) is Linear}
    assert plain == {"kv_b_proj"} | ({"lm_head"} if form is FP8 else set())
    assert sum(isinstance(part, QuantMoE) for part in model.modules()) == 2
    codes = {name.rsplit(".", 1)[0].split(".")[-1] for name, w in model.weights().items() if w.dtype == form.dtype}
    assert codes >= {"q_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not codes & {"embed_tokens", "kv_b_proj", "gate", "norm", "input_layernorm"}


@formats
def test_config_names_exactly_the_matrices_that_stayed(tiny_model: Path, form: Format, tmp_path: Path) -> None:
    out = written(tiny_model, tmp_path / "out", form)
    said = json.loads((out / "config.json").read_text())
    assert stored_format(said) is form
    kept = said["quantization_config"]["ignore" if form is INT8 else "modules_to_not_convert"]
    checkpoint, source = Checkpoint(out), Checkpoint(tiny_model)
    matrices = {name for name, info in source.items() if name.endswith(".weight") and len(info.shape) == 2}
    stayed = {name for name in matrices if name + form.suffix not in checkpoint}
    assert {name + ".weight" for name in kept} | {"model.embed_tokens.weight"} == stayed
    assert {name for name in source if name not in matrices} <= checkpoint.keys()
    assert (out / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


def test_shards_keep_their_names_and_a_modules_copies_of_the_head_stay_copies(tiny_model: Path, tmp_path: Path) -> None:
    """As public checkpoints are: several files, and each MTP module with embedding and head of its own."""
    tensors = dict(load_file(tiny_model / "model.safetensors"))
    for layer in (3, 4):
        for part, name in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
            tensors[f"model.layers.{layer}.{part}.weight"] = tensors[f"{name}.weight"]
    files = {name: (tiny_model / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    source = write_checkpoint(tmp_path / "in", tensors, tiny_config(), shard_bytes=150_000, extra_files=files)
    for form in FORMATS.values():
        out = written(source, tmp_path / form.name, form)
        shards = sorted(path.name for path in source.glob("*.safetensors"))
        assert len(shards) > 2 and sorted(path.name for path in out.glob("*.safetensors")) == shards
        index = json.loads((out / INDEX).read_text())
        assert index["weight_map"].keys() == Checkpoint(out).keys()
        data = sum(t.numel() * t.element_size() for shard in shards for t in load_file(out / shard).values())
        assert index["metadata"]["total_size"] == data
        assert ("lm_head.weight" + form.suffix in index["weight_map"]) == (form is INT8)
        load(out, form.name)
        load(source, form.name)


def test_what_a_checkpoint_keeps_as_numbers_stays_so(tiny_model: Path, tmp_path: Path) -> None:
    """Other tools leave the head, a layer or the MTP modules alone: their checkpoint decides, part by part."""
    out = written(tiny_model, tmp_path / "out", INT8)
    tensors, plain = load_file(out / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    kept = ("lm_head.", "model.layers.1.self_attn.o_proj.", "model.layers.2.mlp.experts.", "model.layers.4.")
    for name in [name for name in tensors if name.startswith(kept)]:
        del tensors[name]
    tensors |= {name: tensor for name, tensor in plain.items() if name.startswith(kept)}
    save_file(tensors, out / "model.safetensors")
    target, mtp = load(out)
    views = target.weights() | mtp.weights()
    for name, tensor in tensors.items():
        assert views[name].dtype == tensor.dtype
        assert torch.equal(views[name], tensor), name
    assert LLM(out).generate(PROMPT, SamplingParams(max_tokens=4))[0].outputs[0].token_ids


def test_a_head_that_differs_by_its_scale_alone_is_another_head(tiny_model: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_model / "model.safetensors")
    tensors["model.layers.3.shared_head.head.weight"] = 2 * tensors["lm_head.weight"]
    source = write_checkpoint(tmp_path / "in", tensors, tiny_config())
    target = load_target(source, quantization="int8")
    with pytest.raises(UserError, match="differs from the target's own"):
        load_mtp(source, target)


def test_target_and_draft_are_quantised_independently(tiny_model: Path) -> None:
    """None follows the target; the text is the target's, whatever the draft is."""
    params = SamplingParams(max_tokens=24, temperature=0.8, seed=3)
    for kind in ("int8", "none"):
        llm = LLM(tiny_model, quantization=kind, drafter="none")
        expected = llm.generate(PROMPT, params)[0].outputs[0].token_ids
        for draft in ("int8", "fp8", "none", None):
            fast = llm.with_options(drafter="mtp", num_speculative_tokens=3, draft_quantization=draft)
            (weight,) = {part.eh_proj.weight.dtype for part in fast.engine.drafter.modules}  # type: ignore[attr-defined]
            assert (weight == torch.int8) == ((draft or kind) == "int8")
            assert fast.generate(PROMPT, params)[0].outputs[0].token_ids == expected


LARGE: dict[str, dict[str, Any]] = {
    "llama": LLAMA | dict(hidden_size=1024, intermediate_size=4096, vocab_size=16384, num_hidden_layers=20),
    "deepseek_v3": dict(
        hidden_size=1024, intermediate_size=4096, moe_intermediate_size=512, n_routed_experts=16, vocab_size=16384,
        num_hidden_layers=12, num_attention_heads=16, q_lora_rank=512, kv_lora_rank=256,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", LARGE)
def test_weights_take_at_most_55_hundredths(family: str) -> None:
    """Of what they take in bf16; the embedding, in bf16 still, is a twentieth of such models."""
    config = ModelConfig.from_dict(tiny_config(**LARGE[family]))
    with laid_out(torch.bfloat16):
        plain, model = build_model(config), build_model(config)
        quantise_modules(model, INT8)
    size, whole = (sum(p.nbytes for p in m.parameters()) for m in (model, plain))
    assert whole > 550_000_000 and size <= 0.55 * whole


BAD_CONFIGS: dict[str, Any] = {
    "awq": dict(quant_method="awq", bits=4),
    "gptq": dict(quant_method="gptq", bits=4),
    "fp8 by tensor": dict(quant_method="fp8", activation_scheme="static"),
    "fp8 other blocks": announce(FP8, []) | dict(weight_block_size=[64, 128]),
    "packed": announce(INT8, []) | dict(format="pack-quantized"),
    "int8 with activations": announce(INT8, [])
    | dict(config_groups={"group_0": {"weights": {}, "input_activations": {"num_bits": 8}}}),
    "no table": "int8",
    "groups of another kind": announce(INT8, []) | dict(config_groups=[1]),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_other_quantisations_are_refused(name: str, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "in", quantization_config=BAD_CONFIGS[name])
    with pytest.raises(UserError, match=r"weights quantised as .* cannot be read; use .*\.$"):
        load_target(source)


def change_scale(change: Callable[[Tensor], Tensor | None]) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        name = next(n for n in tensors if n.endswith(("_scale", "_scale_inv")) and "model.layers.0.mlp.down" in n)
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed

    return edit


def weightless(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.other.weight_scale"] = torch.ones(3, 1)


def plain_weight(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"].to(torch.bfloat16)


DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "no scale": (change_scale(lambda scale: None), "comes without"),
    "short scale": (change_scale(lambda scale: scale[:-1].clone()), "does not hold one scale for each"),
    "flat scale": (change_scale(lambda scale: scale.flatten()), "does not hold one scale for each"),
    "infinite scale": (change_scale(lambda scale: scale / 0), "no finite numbers"),
    "scale in whole numbers": (change_scale(lambda scale: scale.to(torch.int32)), "no finite numbers"),
    "scale without weight": (weightless, "has no place in this model"),
    "plain weight with a scale": (plain_weight, r"is not (INT8|FP8), yet has"),
}


@formats
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_codes_are_refused(tiny_model: Path, form: Format, damage: str, tmp_path: Path) -> None:
    out = written(tiny_model, tmp_path / "out", form)
    change, sentence = DAMAGE[damage]
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors")
    for quantization in (form.name, "none"):
        with pytest.raises(UserError, match=sentence):
            load_target(out, quantization=quantization)


def test_what_quantize_refuses(tiny_model: Path, tmp_path: Path) -> None:
    out = written(tiny_model, tmp_path / "out", INT8)
    with pytest.raises(UserError, match="is in int8 already"):
        plan_quantize(out, INT8)
    with pytest.raises(UserError, match="exists and is not empty"):
        quantize(plan_quantize(tiny_model, FP8), out)
    with pytest.raises(UserError, match="is or holds the checkpoint that is read"):
        quantize(plan_quantize(out, FP8), tmp_path, overwrite=True)
    quantize(plan_quantize(tiny_model, FP8), out, overwrite=True)
    assert stored_format(json.loads((out / "config.json").read_text())) is FP8
    with pytest.raises(UserError, match="quantization 'int4' is not known; use one of int8, fp8, none"):
        load_target(tiny_model, quantization="int4")


def test_a_weight_without_a_number_leaves_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "in")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.self_attn.o_proj.weight"][3, 3] = float("nan")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(
        UserError, match=r"model\.layers\.2\.self_attn\.o_proj\.weight holds numbers that are not finite"
    ):
        written(source, tmp_path / "out", INT8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    with pytest.raises(UserError, match="not finite"):
        load_target(source, quantization="int8")


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """A command line in this process, to its exit code."""
    monkeypatch.setattr(sys, "argv", ["paceline", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_and_the_flags(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, "quantize", tiny_model, out, "--quantization", "int8") == 0
    assert "of int8 to" in capsys.readouterr().out
    texts = []
    for words in ((out,), (tiny_model, "--quantization", "int8", "--draft-quantization", "none")):
        assert run(monkeypatch, "generate", PROMPT, "--raw", "--max-tokens", "12", "--model", *words) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != "\n"
    for words, sentence in (
        (("quantize", tiny_model, out), "exists and is not empty"),
        (("quantize", tiny_model, tmp_path / "o", "--quantization", "none"), "choose int8 or fp8"),
        (("quantize", tiny_model, tmp_path / "o", "--quantization", "int4"), "is not known"),
        (("quantize", tmp_path / "nothing", tmp_path / "o"), "There is no model directory"),
        (("generate", PROMPT, "--draft-quantization", "int8", "--drafter", "ngram"), "belongs to --drafter mtp"),
    ):
        assert run(monkeypatch, *words) == 2
        said = capsys.readouterr().err
        assert sentence in said.replace("\n", " ") and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
