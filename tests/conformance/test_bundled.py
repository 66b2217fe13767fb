"""The model that ships: readable by others, as good as its card says, and faithful to promise 1 in bf16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from paceline.assets import heldout_prompts
from paceline.bench.acceptance import acceptance_by_source, total
from paceline.bench.lossless import QUICK, matrix, verify_lossless
from paceline.cache.dense import DenseAttend
from paceline.checkpoint.reader import Checkpoint
from paceline.checkpoint.resolve import bundled_model
from paceline.config import ModelConfig
from paceline.llm import LLM
from paceline.request import SamplingParams
from paceline.runtime.build import load_target
from paceline.tokenizer import Tokenizer

MAX_BYTES = 48_000_000


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(enable_prefix_caching=False)


def test_size_layout_and_the_fields_that_other_engines_read() -> None:
    config, checkpoint = ModelConfig.from_dir(bundled_model()), Checkpoint(bundled_model())
    assert sum(path.stat().st_size for path in bundled_model().glob("*.safetensors")) <= MAX_BYTES
    raw = config.raw
    assert (raw["kv_lora_rank"], raw["qk_rope_head_dim"], raw["num_nextn_predict_layers"]) == (512, 64, 3)
    assert 0 < raw["first_k_dense_replace"] < config.num_hidden_layers - 1
    classic = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "rope_theta": 10000.0, "moe_layer_freq": 1}
    assert {name: raw[name] for name in classic} == classic
    for depth in range(3):
        prefix = f"model.layers.{config.num_hidden_layers + depth}."
        for name in ("enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head.norm", "shared_head.head"):
            assert prefix + name + ".weight" in checkpoint
    assert {info.dtype for name, info in checkpoint.items() if not name.endswith("bias")} == {"BF16"}


def test_transformers_reads_it_and_says_the_same() -> None:
    """In float32, prompts of every source in one row each; the MTP layers are what transformers leaves out."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32).eval()
    assert type(theirs).__name__ == "DeepseekV3ForCausalLM"
    ours, tokenizer = load_target(bundled_model(), dtype="float32"), Tokenizer.from_dir(bundled_model())
    for prompt in heldout_prompts()[:6]:
        content = prompt.content
        ids = tokenizer.encode(content) if isinstance(content, str) else tokenizer.apply_chat_template(content)
        tokens = torch.tensor(ids)
        with torch.inference_mode():
            attend = DenseAttend(torch.zeros(1, len(ids), dtype=torch.int64))
            logits = ours.logits(ours(tokens, torch.arange(len(ids)), attend))
            torch.testing.assert_close(logits, theirs(tokens[None]).logits[0], atol=1e-4, rtol=0)


def test_transformers_reads_its_tokenizer_and_chat_template() -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(bundled_model())
    ours = Tokenizer.from_dir(bundled_model())
    for prompt in heldout_prompts()[:40]:
        if isinstance(prompt.content, str):
            assert ours.encode(prompt.content) == theirs.encode(prompt.content)
            assert ours.decode(ours.encode(prompt.content)) == prompt.content
        else:
            ids = theirs.apply_chat_template(prompt.content, add_generation_prompt=True, return_dict=False)
            assert ours.apply_chat_template(prompt.content) == ids


def test_the_card_names_sources_and_licences() -> None:
    card = (bundled_model() / "README.md").read_text()
    prompts = (Path(bundled_model()).parent / "heldout.jsonl").read_text().splitlines()
    licences = {json.loads(line)["licence"] for line in prompts}
    assert len(licences) > 5 and all(licence.split(" (")[0].split(" /")[0] in card for licence in licences)


@pytest.mark.slow
def test_the_same_tokens_whatever_the_drafter(llm: LLM) -> None:
    prompts = [prompt.content for prompt in heldout_prompts()[: QUICK.prompts]]
    report = verify_lossless(llm, prompts, matrix(QUICK))
    assert report.differences == []
    assert report.accepted > 100 and report.prefix_hit_tokens > 0 and report.preemptions > 0


@pytest.mark.slow
def test_acceptance_is_what_the_card_says(llm: LLM) -> None:
    """Counts, not seconds: on fewer prompts than the card's table, so with some room below it."""
    prompts, params = heldout_prompts()[:38], SamplingParams(max_tokens=64)
    one, three = (
        total(acceptance_by_source(llm.with_options(num_speculative_tokens=k), prompts, params)) for k in (1, 3)
    )
    assert one.acceptance_rate > 0.75
    assert three.acceptance_length > 2.5
