"""Every family against transformers, in float32: dense, paged in all kinds of chunks, and through export and back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import transformers
from passes import BLOCK, assert_close, batch_of, chunks_of, dense_logits, tables_for, tokens_of
from safetensors.torch import load_file
from tiny_models import CASES, Reference, classic_words, edit_config, make_reference
from torch import Tensor

from paceline.cache.dense import DenseAttend
from paceline.cache.pool import Pool
from paceline.checkpoint.writer import write_checkpoint
from paceline.errors import UserError
from paceline.models import families
from paceline.models.decoder import DecoderModel
from paceline.runtime.build import load_target
from paceline.runtime.runner import Runner


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(",", "").replace(" ", "-"))
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(request.param, tmp_path_factory.mktemp("model"))


def test_every_family_has_a_reference() -> None:
    assert {name.split()[0] for name in CASES} == set(families())


def test_dense_logits(reference: Reference) -> None:
    tokens = tokens_of(90)
    assert_close(dense_logits(load_target(reference.directory), tokens), reference.logits(tokens))


def test_documents_in_a_row_do_not_see_each_other(reference: Reference) -> None:
    model, parts = load_target(reference.directory), [tokens_of(20, 1), tokens_of(13, 2)]
    documents = torch.tensor([[0] * 20 + [1] * 13])
    positions = torch.cat([torch.arange(20), torch.arange(13)])
    with torch.inference_mode():
        ours = model.logits(model(torch.cat(parts), positions, DenseAttend(documents)))
    assert_close(ours, torch.cat([reference.logits(part) for part in parts]))


def paged_logits(model: DecoderModel, texts: list[Tensor], rng: random.Random) -> list[Tensor]:
    """Each text's logits, read in random passes from a pool with scattered blocks."""
    lengths = [len(text) for text in texts]
    tables, num_blocks = tables_for(lengths, rng)
    runner = Runner(model, Pool(model.cache, num_blocks, BLOCK, model.norm.weight.dtype), Path())
    ours: list[list[Tensor]] = [[] for _ in texts]
    for spans in chunks_of(lengths, rng):
        batch = batch_of(texts, spans, tables)
        logits = runner.logits(runner(batch)[batch.take]).split([end - begin for begin, end in spans])
        for mine, rows in zip(ours, logits, strict=True):
            mine.append(rows)
    return [torch.cat(mine) for mine in ours]


@pytest.mark.parametrize("seed", range(3))
def test_paged_logits(reference: Reference, seed: int) -> None:
    texts = [tokens_of(n, seed + n) for n in (70, 33, 5)]
    ours = paged_logits(load_target(reference.directory), texts, random.Random(seed))
    for mine, text in zip(ours, texts, strict=True):
        assert_close(mine, reference.logits(text))


def test_bf16_logits_are_the_same_bits_in_every_pass(reference: Reference) -> None:
    model, texts = load_target(reference.directory, "bfloat16"), [tokens_of(n, n) for n in (90, 33, 5)]
    first, *others = (paged_logits(model, texts, random.Random(seed)) for seed in range(4))
    alone = [paged_logits(model, [text], random.Random(9))[0] for text in texts]
    for other in (*others, alone):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_classic_configuration_means_the_same(reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").hardlink_to(reference.directory / "model.safetensors")
    (tmp_path / "config.json").write_text((reference.directory / "config.json").read_text())
    classic_words(tmp_path)
    tokens = tokens_of(60)
    assert_close(dense_logits(load_target(tmp_path), tokens), reference.logits(tokens))


def test_export_then_load_is_identity(reference: Reference, tmp_path: Path) -> None:
    model = load_target(reference.directory)
    exported = write_checkpoint(tmp_path / "out", model.weights(), model.config.to_dict(), shard_bytes=20_000)
    original = load_file(reference.directory / "model.safetensors")
    again = load_target(exported).weights()
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], original[name]) for name in original)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        exported, output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = tokens_of(40)
    assert torch.equal(Reference(theirs.eval(), exported).logits(tokens), reference.logits(tokens))


def test_dtype_is_the_checkpoints_unless_told(reference: Reference) -> None:
    assert load_target(reference.directory).norm.weight.dtype == torch.float32
    weights = load_target(reference.directory, "bfloat16").weights()
    assert {t.dtype for n, t in weights.items() if not n.endswith("correction_bias")} == {torch.bfloat16}
    assert {t.dtype for n, t in weights.items() if n.endswith("correction_bias")} <= {torch.float32}


def test_nothing_asks_for_gradients_or_waits_on_meta(reference: Reference) -> None:
    model = load_target(reference.directory)
    assert not model.training
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.requires_grad or tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", {"model_type": "martian"}, "martian.*known families.*deepseek_v3.*llama"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"num_attention_heads": "4"}, "num_attention_heads"),
        ("mistral", {"sliding_window": 64}, "sliding_window"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ("llama", {"num_hidden_layers": 2}, "has no place"),
        ("llama", {"num_hidden_layers": 4}, "is missing"),
        ("llama", {"vocab_size": 62}, r"shape \[61, 32\].*\[62, 32\]"),
        ("llama", {"attention_bias": True}, "bias.*is missing"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek_v3", {"kv_lora_rank": None}, "kv_lora_rank"),
        ("deepseek_v3", {"n_group": 3}, "of 3 groups"),
        ("deepseek_v3", {"num_experts_per_tok": 99}, "99 experts a token"),
        ("deepseek_v3", {"v_head_dim": -4}, "does not describe a deepseek_v3 model"),
        ("deepseek_v3", {"rope_parameters": {"rope_type": "yarn"}}, "does not describe.*factor"),
        ("deepseek_v3", {"num_nextn_predict_layers": "x"}, "num_nextn_predict_layers must be a whole number"),
        ("llama", {"eos_token_id": "x"}, "eos_token_id must be"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, name: str, changes: dict[str, object], words: str) -> None:
    make_reference(name, tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=words):
        load_target(tmp_path)


def test_a_sliding_window_that_changes_nothing_is_read(tmp_path: Path) -> None:
    make_reference("qwen2", tmp_path)
    edit_config(tmp_path, sliding_window=64, use_sliding_window=False)
    load_target(tmp_path)
    edit_config(tmp_path, sliding_window=256, use_sliding_window=True)
    load_target(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 256
