"""MTP modules from wherever they are: the same drafts as in place, or one sentence that says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import write_tiny
from paceline.assets import heldout_prompts
from paceline.checkpoint.dequant import dequantise
from paceline.checkpoint.layouts import LAYOUTS
from paceline.checkpoint.resolve import bundled_model
from paceline.convert.export_mtp import export_mtp
from paceline.convert.export_plan import plan_export
from paceline.errors import UserError
from paceline.llm import LLM
from paceline.models.decoder import DecoderModel
from paceline.request import SamplingParams
from paceline.runtime.build import load_mtp, load_target

PROMPTS = [prompt.content for prompt in heldout_prompts()[:3]]
Tensors = dict[str, Tensor | None]
Texts = list[tuple[list[int], list[int]]]  # token ids, and who wrote each: drafts that differ in one place show there
Expected = dict[int, Texts]  # by the number of drafted tokens


@pytest.fixture(scope="module")
def in_place() -> LLM:
    return LLM(enable_prefix_caching=False)


@pytest.fixture(scope="module")
def expected(in_place: LLM) -> Expected:
    found = {k: drafts_of(in_place.with_options(num_speculative_tokens=k)) for k in (1, 2, 3)}
    assert all(sum(map(bool, origins)) for texts in found.values() for _, origins in texts)
    return found


def drafts_of(llm: LLM) -> Texts:
    params = SamplingParams(max_tokens=20, temperature=0.7, seed=5)
    answers = [result.outputs[0] for result in llm.generate(PROMPTS, params)]
    return [(answer.token_ids, answer.origins) for answer in answers]


@pytest.mark.parametrize(("layout", "shared"), [("xllm", "keep"), ("sglang", "drop"), ("original", "drop")])
def test_export_then_load_is_in_place(
    in_place: LLM, expected: Expected, tmp_path: Path, layout: str, shared: str
) -> None:
    draft = export_mtp(plan_export(bundled_model(), layout, shared=shared), tmp_path / "draft")
    for k in (1, 2, 3):
        assert drafts_of(in_place.with_options(num_speculative_tokens=k, draft_model=str(draft))) == expected[k]


def test_a_full_checkpoint_is_a_draft_model_too(expected: Expected) -> None:
    other = LLM(draft_model=str(bundled_model()), enable_prefix_caching=False, num_speculative_tokens=2)
    assert drafts_of(other) == expected[2]


def test_the_targets_config_need_not_know_of_modules(tmp_path: Path, expected: Expected) -> None:
    bare = copy_of(bundled_model(), tmp_path / "bare", num_nextn_predict_layers=0)
    modules = tuple(f"model.layers.{8 + d}." for d in range(3))
    edit(bare, {name: None for name in load_file(bare / "model.safetensors") if name.startswith(modules)})
    draft = export_mtp(plan_export(bundled_model(), "sglang"), tmp_path / "draft")
    with pytest.raises(UserError, match=r"bare has no MTP modules.*--drafter ngram or none"):
        LLM(model=bare)
    llm = LLM(model=bare, draft_model=str(draft), num_speculative_tokens=3, enable_prefix_caching=False)
    assert drafts_of(llm) == expected[3]


# On the tiny model, without an engine


@pytest.fixture(scope="module")
def target(tiny_model: Path) -> DecoderModel:
    return load_target(tiny_model)


@pytest.fixture(params=LAYOUTS)
def draft(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    """Both modules, with embedding and head, in each layout."""
    return export_mtp(plan_export(tiny_model, request.param, shared="keep"), tmp_path / "draft")


def copy_of(source: Path, directory: Path, **changes: object) -> Path:
    shutil.copytree(source, directory)
    raw = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


def edit(directory: Path, changes: Tensors) -> None:
    """Change, add or (None) remove tensors; they end up in one file without an index."""
    (file,) = directory.glob("*.safetensors")
    kept = {name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(kept, file)


def name_of(directory: Path, part: str, depth: int = 0) -> str:
    (file,) = directory.glob("*.safetensors")
    return [name for name in load_file(file) if name.endswith(part)][depth]


def test_modules_are_the_same_numbers_in_every_layout(tiny_model: Path, target: DecoderModel, draft: Path) -> None:
    expected, found = load_mtp(tiny_model, target).weights(), load_mtp(draft, target).weights()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_first_of_several_modules_alone(target: DecoderModel, draft: Path) -> None:
    assert len(load_mtp(draft, target, num_modules=1).depths) == 1
    assert len(load_mtp(draft, target, num_modules=9).depths) == 2


def test_fp8_weights_and_scales(target: DecoderModel, draft: Path) -> None:
    name = name_of(draft, "self_attn.o_proj.weight")
    weight, scale = (torch.randn(64, 128) * 9).to(torch.float8_e4m3fn), torch.rand(1, 1) / 9
    edit(draft, {name: weight, name + "_scale_inv": scale})
    loaded = load_mtp(draft, target).weights()["model.layers.3.self_attn.o_proj.weight"]
    assert torch.equal(loaded, dequantise(weight, scale).bfloat16())
    edit(draft, {name: weight.bfloat16()})
    with pytest.raises(UserError, match=rf"{name} .*is not FP8, yet has {name}_scale_inv"):
        load_mtp(draft, target)


def test_the_layer_apart_from_what_is_mtps_own_may_be_fp8_without_embedding(
    target: DecoderModel, tiny_model: Path, tmp_path: Path
) -> None:
    """SGLang's layout as some describe it: like xLLM's, but as stored and without embedding and head."""
    plan = plan_export(tiny_model, "xllm", dtype="keep", shared="drop")
    found = load_mtp(export_mtp(plan, tmp_path / "draft"), target).weights()
    assert {"model.enorm.weight", "model.layers.0.mlp.gate.weight"} <= {copy.name for copy in plan.copies}
    expected = load_mtp(tiny_model, target).weights()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_modules_alone_are_no_model(draft: Path) -> None:
    with pytest.raises(UserError, match=r"MTP modules alone: give it as draft model|embed_tokens\.weight .* missing"):
        load_target(draft)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_fp8_checkpoints_modules_are_the_same_numbers(tiny_model: Path, tmp_path: Path, layout: str) -> None:
    """Kept as FP8 with its scales, and made bfloat16 on the way."""
    source = copy_of(tiny_model, tmp_path / "fp8")
    edit(source, dict(fp8(load_file(source / "model.safetensors"))))
    target = load_target(source)
    expected = load_mtp(source, target).weights()
    for dtype in ("keep", "bfloat16"):
        plan = plan_export(source, layout, dtype=dtype)
        found = load_mtp(export_mtp(plan, tmp_path / dtype), target).weights()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        stored = {copy.dtype for copy in plan.copies}
        assert ("F8_E4M3" in stored) == (dtype == "keep")


def fp8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Projections of the modules as FP8 of random scale."""
    changed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (
            name.startswith(("model.layers.3.", "model.layers.4."))
            and name.endswith("proj.weight")
            and "eh" not in name
        ):
            changed[name] = (tensor.float() * 50).to(torch.float8_e4m3fn)
            changed[name + "_scale_inv"] = torch.rand(*(-(-n // 128) for n in tensor.shape)) / 50
    return changed


MISTAKES: dict[str, tuple[Callable[[Path], Tensors], str]] = {
    "missing": (lambda d: {name_of(d, "hnorm.weight"): None}, r"Tensor \S*hnorm\.weight is missing.*--drafter none"),
    "an expert gap": (lambda d: {name_of(d, "experts.3.up_proj.weight"): None}, r"experts\.3\.up_proj.* is missing"),
    "second module": (lambda d: {name_of(d, "hnorm.weight", 1): None}, r"Tensor \S*hnorm\.weight is missing"),
    "left over": (lambda d: {name_of(d, "hnorm.weight") + "s": torch.ones(1)}, r"hnorm\.weights has no place"),
    "not a module's": (lambda d: {"rot.weight": torch.ones(1)}, r"Tensor rot\.weight has no place"),
    "a scale alone": (
        lambda d: {name_of(d, "input_layernorm.weight").replace("input", "self_attn.x_") + "_scale_inv": torch.ones(1)},
        "weight_scale_inv has no place",
    ),
    "a depth without end": (
        lambda d: {"model.layers.987654.input_layernorm.weight": torch.ones(1)},
        r"no MTP module 2 before model\.layers\.987654\.input_layernorm\.weight",
    ),
    "misshapen": (
        lambda d: {name_of(d, "eh_proj.weight"): torch.ones(64, 64)},
        r"eh_proj\.weight has shape \[64, 64\]",
    ),
    "foreign embedding": (lambda d: {name_of(d, "embed_tokens.weight"): torch.ones(320, 64)}, "embed_tokens.* differs"),
    "foreign head": (lambda d: {name_of(d, "shared_head.head.weight"): torch.ones(320, 64)}, "head.* differs"),
    "foreign main head": (lambda d: {"lm_head.weight": torch.ones(320, 64)}, r"Tensor lm_head\.weight differs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_tensor_is_named(target: DecoderModel, draft: Path, mistake: str) -> None:
    changes, words = MISTAKES[mistake]
    edit(draft, changes(draft))
    with pytest.raises(UserError, match=words) as refused:
        load_mtp(draft, target)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 128},
        {"vocab_size": 512},
        {"n_routed_experts": 16},
        {"kv_lora_rank": 32},
        {"model_type": "qwen3"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_draft_of_another_model(target: DecoderModel, draft: Path, changes: dict[str, object]) -> None:
    ((name, value),) = changes.items()
    other = copy_of(draft, draft.parent / "other", **changes)
    with pytest.raises(UserError, match=rf"draft of another model: its {name} is '?{value}'?, the target's"):
        load_mtp(other, target)


def test_modules_promised_but_not_there(target: DecoderModel, draft: Path) -> None:
    other = copy_of(draft, draft.parent / "other", num_nextn_predict_layers=3)
    with pytest.raises(UserError, match=r"Tensor \S+ \(and \d+ more\) is missing"):
        load_mtp(other, target)
    assert len(load_mtp(other, target, num_modules=2).depths) == 2
    hostile = copy_of(draft, draft.parent / "hostile", num_nextn_predict_layers=10**9)
    with pytest.raises(UserError, match="num_nextn_predict_layers is 1000000000, and no model has more"):
        load_mtp(hostile, target)


def test_another_checkpoint_must_have_the_same_embedding(
    target: DecoderModel, tiny_model: Path, tmp_path: Path
) -> None:
    other = copy_of(tiny_model, tmp_path / "other")
    load_mtp(other, target)
    edit(other, {"model.embed_tokens.weight": torch.ones(320, 64)})
    with pytest.raises(UserError, match=r"Tensor model\.embed_tokens\.weight differs"):
        load_mtp(other, target)
    short = write_tiny(tmp_path / "short", num_hidden_layers=2)
    with pytest.raises(UserError, match="its num_hidden_layers is 2, the target's 3"):
        load_mtp(short, target)


def test_who_has_no_use_for_a_draft_model_says_so(tiny_model: Path) -> None:
    for drafter in ("ngram", "none"):
        with pytest.raises(UserError, match=f"draft_model belongs to drafter mtp, and drafter {drafter}"):
            LLM(model=tiny_model, drafter=drafter, draft_model=str(tiny_model))
    with pytest.raises(UserError, match="There is no model directory nowhere"):
        LLM(model=tiny_model, draft_model="nowhere")
    llm = LLM(model=tiny_model, draft_model=str(tiny_model))
    assert llm.with_options(drafter="none").generate("one two", SamplingParams(max_tokens=2))
