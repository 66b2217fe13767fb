"""The layouts of exported MTP modules: the published names for one module, and every name both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import tiny_config
from paceline.checkpoint.layouts import LAYOUTS, find_modules, find_part, layout_config, layout_name, layout_of
from paceline.config import ModelConfig
from paceline.errors import UserError

CONFIG = ModelConfig.from_dict(tiny_config(num_hidden_layers=61, num_nextn_predict_layers=1))
PARTS = (
    "enorm.weight",
    "hnorm.weight",
    "eh_proj.weight",
    "embed_tokens.weight",
    "shared_head.norm.weight",
    "shared_head.head.weight",
    "input_layernorm.weight",
    "self_attn.o_proj.weight",
    "self_attn.o_proj.weight_scale_inv",
    "mlp.gate.e_score_correction_bias",
    "mlp.experts.11.down_proj.weight",
)
parts = st.sampled_from(PARTS)
prefixes = st.sampled_from(["", "model.", "model.layers.0.", "model.layers.61."])
names = st.one_of(st.text(max_size=12), st.builds("{}{}{}".format, prefixes, parts, st.text(max_size=2)))


@pytest.mark.parametrize(
    ("part", "xllm", "sglang"),
    [
        ("enorm.weight", "model.enorm.weight", "model.layers.0.enorm.weight"),
        ("eh_proj.weight", "model.eh_proj.weight", "model.layers.0.eh_proj.weight"),
        ("embed_tokens.weight", "model.embed_tokens.weight", "model.layers.0.embed_tokens.weight"),
        ("shared_head.norm.weight", "model.shared_head.norm.weight", "model.layers.0.shared_head.norm.weight"),
        ("shared_head.head.weight", "model.shared_head.head.weight", "model.layers.0.shared_head.head.weight"),
        ("mlp.gate.weight", "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.gate.weight"),
        ("input_layernorm.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm.weight"),
    ],
)
def test_one_module_has_the_published_names(part: str, xllm: str, sglang: str) -> None:
    """Written down from the two tools."""
    expected = {"xllm": xllm, "sglang": sglang, "original": "model.layers.61." + part}
    assert {layout: layout_name(layout, 0, part, CONFIG) for layout in LAYOUTS} == expected


@given(st.sampled_from(LAYOUTS), st.integers(0, 5), parts)
def test_a_part_is_found_again(layout: str, depth: int, part: str) -> None:
    assert find_part(layout, layout_name(layout, depth, part, CONFIG), CONFIG) == (depth, part)


@given(st.sampled_from(LAYOUTS), names)
def test_no_name_means_what_another_means(layout: str, name: str) -> None:
    found = find_part(layout, name, CONFIG)
    assert found is None or layout_name(layout, *found, CONFIG) == name


@given(st.sampled_from(LAYOUTS), st.integers(1, 3), st.sampled_from(PARTS[:4]))
def test_a_directory_tells_its_layout_by_any_mark(layout: str, depths: int, mark: str) -> None:
    wanted = {(d, part): layout_name(layout, d, part, CONFIG) for d in range(depths) for part in (mark, *PARTS[4:])}
    others = {"model.layers.3.self_attn.o_proj.weight", "model.norm.weight"} if layout == "original" else set()
    assert layout_of(wanted.values()) == layout
    assert find_modules([*wanted.values(), *others], CONFIG) == wanted


def test_a_config_says_what_the_published_tools_say() -> None:
    xllm, sglang, original = (layout_config(layout, CONFIG, 1, dequantised=False) for layout in LAYOUTS)
    raw = CONFIG.to_dict()
    assert {name: value for name, value in xllm.items() if raw.get(name) != value} == {
        "num_hidden_layers": 1,
        "model_type": "deepseek_v3_mtp",
        "architectures": ["DeepseekMTPForCausalLM"],
        "first_k_dense_replace": 0,
        "quantization_config": "",
    }
    assert {name: value for name, value in sglang.items() if raw.get(name) != value} == {
        "num_hidden_layers": 1,
        "architectures": ["DeepseekV3ForCausalLMNextN"],
    }
    assert original == raw
    assert layout_config("xllm", CONFIG, 3, dequantised=False)["num_nextn_predict_layers"] == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_quantisation_config_is_true(layout: str) -> None:
    excluded = ["lm_head", "model.layers.7.mlp.gate", "model.layers.61.eh_proj", "model.layers.61"]
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": excluded}
    config = ModelConfig.from_dict(CONFIG.to_dict() | {"quantization_config": quantised, "torch_dtype": "float32"})
    kept = layout_config(layout, config, 1, dequantised=False)
    eh_proj = layout_name(layout, 0, "eh_proj.weight", config).removesuffix(".weight")
    layer = "model.layers.61" if layout == "original" else "model.layers.0"
    assert kept["quantization_config"] == quantised | {"modules_to_not_convert": ["lm_head", eh_proj, layer]}
    plain = layout_config(layout, config, 1, dequantised=True)
    assert plain.get("quantization_config", "") == "" and ("quantization_config" in plain) == (layout == "xllm")
    assert plain["dtype"] == plain["torch_dtype"] == "bfloat16"


def test_a_layout_takes_only_families_that_its_readers_know() -> None:
    other = ModelConfig.from_dict(tiny_config(model_type="mimo"))
    for layout in ("xllm", "sglang"):
        with pytest.raises(UserError, match=rf"layout {layout} is only known for .*deepseek_v3.*not for mimo"):
            layout_config(layout, other, 1, dequantised=False)
    assert layout_config("original", other, 1, dequantised=False)["model_type"] == "mimo"
