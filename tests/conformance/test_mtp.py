"""MTP modules against the technical report written out by hand, dense and paged; what may be shared or missing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers
from passes import BLOCK, TOLERANCE, assert_close, batch_of, chunks_of, dense_logits, tables_for, tokens_of
from safetensors.torch import load_file
from tiny_models import HIDDEN, Reference, edit_config, edit_tensors, make_mtp_reference
from torch import Tensor

from paceline.cache.attend import PagedAttend
from paceline.cache.dense import DenseAttend
from paceline.cache.pool import Pool
from paceline.checkpoint.writer import write_checkpoint
from paceline.config import ModelConfig
from paceline.convert.mtp_source import find_mtp
from paceline.errors import UserError
from paceline.runtime.build import load_mtp, load_target

MTP_CASES = (
    "deepseek_v3", "deepseek_v3 plain queries, one group", "deepseek_v3 yarn", "glm4_moe", "glm4_moe air", "mimo",
    "mimo tied, yarn", "glm4_moe_lite",
)  # fmt: skip
DEPTHS = 3
MtpModel = getattr(transformers.modeling_layers, "MtpModel", None)


@pytest.fixture(scope="module", params=MTP_CASES)
def mtp_reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_mtp_reference(request.param, tmp_path_factory.mktemp("mtp"), DEPTHS)


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@torch.inference_mode()
def mtp_oracle(reference: Reference, tokens: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The technical report, line by line: the target's states, then each depth's outputs and logits, teacher forced.

    Depth d's row i sees token i + d and depth d-1's row i. The blocks are transformers' own decoder layers."""
    whole, eps, words = reference.model.model, reference.model.config.rms_norm_eps, reference.words
    first = len(whole.layers) - DEPTHS
    embedded = reference.model.get_input_embeddings()(tokens)

    def layer(index: int, x: Tensor) -> Tensor:
        positions = torch.arange(len(x))[None]
        mask = torch.full((len(x), len(x)), float("-inf")).triu(1)[None, None]
        rotation = whole.rotary_emb(x[None], positions)
        y = whole.layers[index](x[None], attention_mask=mask, position_ids=positions, position_embeddings=rotation)
        return (y[0] if isinstance(y, tuple) else y).view_as(x)

    h = embedded
    for index in range(first):
        h = layer(index, h)
    target = h = h if words.raw_features else rms(h, whole.norm.weight, eps)
    outputs, logits = [], []
    for d, weight in enumerate(reference.mtp, 1):
        embedded = weight["embed"][tokens] if words.embed else embedded
        token, state = rms(embedded[d:], weight["enorm"], eps), rms(h[:-1], weight["hnorm"], eps)
        joined = torch.cat((state, token) if words.hidden_first else (token, state), dim=-1)
        h = rms(layer(first + d - 1, joined @ weight["eh_proj"].T), weight["norm"], eps)
        outputs.append(h)
        logits.append(h @ (weight["head"] if words.head else reference.model.lm_head.weight).T)
    return target, outputs, logits


def test_mtp_dense_is_the_papers(mtp_reference: Reference) -> None:
    target = load_target(mtp_reference.directory)
    mtp, tokens = load_mtp(mtp_reference.directory, target), tokens_of(50)
    expected_target, expected, expected_logits = mtp_oracle(mtp_reference, tokens)
    with torch.inference_mode():
        h = target(tokens, torch.arange(50), DenseAttend(torch.zeros(1, 50, dtype=torch.int64)))
        torch.testing.assert_close(h, expected_target, atol=TOLERANCE, rtol=0)
        for d, depth in enumerate(mtp.depths, 1):
            size = 50 - d
            h = depth(tokens[d:], torch.arange(size), DenseAttend(torch.zeros(1, size, dtype=torch.int64)), h[:-1])
            torch.testing.assert_close(h, expected[d - 1], atol=TOLERANCE, rtol=0)
            assert_close(depth.logits(h), expected_logits[d - 1])


@pytest.mark.skipif(MtpModel is None, reason="this version of transformers has no MTP modules")
def test_mtp_is_what_transformers_makes_of_the_same_checkpoint(mtp_reference: Reference) -> None:
    """transformers finds the tensors by the layer numbers of the public checkpoints, here those of the tiny ones."""
    if mtp_reference.model.config.model_type in ("mimo", "glm4_moe_lite"):
        pytest.skip("transformers has no MTP modules of this family")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(mtp_reference.directory, attn_implementation="eager")
    first = theirs.config.num_hidden_layers
    theirs._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{first + d}\." for d in range(DEPTHS)]
    modules, tokens = MtpModel.from_pretrained(theirs.eval()).eval(), tokens_of(50)
    target = load_target(mtp_reference.directory)
    ours, positions = load_mtp(mtp_reference.directory, target), torch.arange(50)
    with torch.inference_mode():
        h = target(tokens, positions, DenseAttend(torch.zeros(1, 50, dtype=torch.int64)))
        g = theirs(tokens[None], output_hidden_states=True).hidden_states[-1]
        for d, depth in enumerate(ours.depths, 1):
            size = 50 - d
            h = depth(tokens[d:], positions[:size], DenseAttend(torch.zeros(1, size, dtype=torch.int64)), h[:-1])
            g = modules.forward_layer(d - 1, g[:, :-1], positions[None, :size], None, input_ids=tokens[None, d:])
            assert_close(depth.logits(h), modules.shared_head(g)[0])


@pytest.mark.parametrize("seed", range(2))
def test_mtp_paged_in_slot_coordinates(mtp_reference: Reference, seed: int) -> None:
    """Depth d's entry at slot s: token s, depth d-1's output at slot s-1, position s-d; slots below d hold nothing."""
    rng, lengths = random.Random(seed), [45, 21]
    target = load_target(mtp_reference.directory)
    mtp, texts = load_mtp(mtp_reference.directory, target), [tokens_of(n, n) for n in lengths]
    tables, num_blocks = tables_for(lengths, rng)
    pool = Pool(mtp.cache, num_blocks, BLOCK, torch.float32)
    oracles = [mtp_oracle(mtp_reference, text) for text in texts]
    for d, depth in enumerate(mtp.depths, 1):
        for spans in chunks_of(lengths, rng, begin=d):
            batch = batch_of(texts, spans, tables, first=d)
            before = [([target, *outputs])[d - 1] for target, outputs, _ in oracles]  # row i is slot i + d - 1
            features = torch.cat([b[begin - d : end - d] for b, (begin, end) in zip(before, spans, strict=True)])
            wanted = torch.cat(
                [o[1][d - 1][begin - d : end - d] for o, (begin, end) in zip(oracles, spans, strict=True)]
            )
            with torch.inference_mode():
                ours = depth(batch.tokens, batch.positions, PagedAttend(pool, batch), features)
            torch.testing.assert_close(ours, wanted, atol=TOLERANCE, rtol=0)


def test_target_and_mtp_export_together(mtp_reference: Reference, tmp_path: Path) -> None:
    target = load_target(mtp_reference.directory)
    mtp = load_mtp(mtp_reference.directory, target)
    tensors = target.weights() | mtp.weights() | mtp.shared_weights()
    exported = write_checkpoint(tmp_path / "out", tensors, target.config.to_dict())
    original, ours = load_file(mtp_reference.directory / "model.safetensors"), load_file(exported / "model.safetensors")
    assert ours.keys() - mtp.shared_weights().keys() == original.keys()
    assert all(torch.equal(ours[name], original[name]) for name in original)
    again = load_mtp(exported, load_target(exported)).weights()
    assert all(torch.equal(again[name], original[name]) for name in again)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        exported, attn_implementation="eager"
    ).eval()  # which leaves MTP modules alone
    tokens = tokens_of(40)
    assert_close(dense_logits(load_target(exported), tokens), Reference(theirs, exported).logits(tokens))


def test_the_first_modules_alone(mtp_reference: Reference) -> None:
    target = load_target(mtp_reference.directory)
    one = load_mtp(mtp_reference.directory, target, num_modules=1)
    assert len(one.depths) == 1 and one.cache.num_layers == 1
    shares = not mtp_reference.words.head
    assert (one.depths[0].head is target.lm_head) == (one.depths[0].embed_tokens is target.embed_tokens) == shares
    assert one.depths[0].eh_proj.weight.shape == (HIDDEN, 2 * HIDDEN)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_copies_of_the_shared_tensors_must_be_copies(tmp_path: Path, family: str) -> None:
    make_mtp_reference(family, tmp_path, 1)
    head = load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    name = "model.layers.3.shared_head.head.weight"
    edit_tensors(tmp_path, {name: head})
    target = load_target(tmp_path)
    load_mtp(tmp_path, target)
    edit_tensors(tmp_path, {name: head + 1})
    with pytest.raises(UserError, match=f"{name} differs.*--drafter none"):
        load_mtp(tmp_path, target)


def test_an_embedding_of_its_own_belongs_to_the_module(tmp_path: Path) -> None:
    """GLM-4.7-Flash: it is exported whatever is said of copies, and the target's never takes its place."""
    make_mtp_reference("glm4_moe_lite", tmp_path, 1)
    config, name = ModelConfig.from_dir(tmp_path), "model.layers.3.embed_tokens.weight"
    found = find_mtp(tmp_path, config, shared=False)
    assert found[0, "embed_tokens.weight"].name == name and (0, "shared_head.head.weight") in found
    edit_tensors(tmp_path, {name: None})
    for read in (lambda: find_mtp(tmp_path, config, shared=True), lambda: load_mtp(tmp_path, load_target(tmp_path))):
        with pytest.raises(UserError, match=rf"{name} is missing"):
            read()


def test_a_checkpoint_saved_without_its_modules(tmp_path: Path) -> None:
    make_mtp_reference("deepseek_v3", tmp_path, 2)
    names = load_file(tmp_path / "model.safetensors")
    modules = [name for name in names if name.startswith(("model.layers.3.", "model.layers.4."))]
    edit_tensors(tmp_path, dict.fromkeys(modules))
    target = load_target(tmp_path)
    with pytest.raises(UserError, match=rf"model\.layers\.3\.enorm.*{len(modules) - 1} more.*missing.*--drafter none"):
        load_mtp(tmp_path, target)
    edit_config(tmp_path, num_nextn_predict_layers=0)
    with pytest.raises(UserError, match=r"no MTP modules.*--drafter"):
        load_mtp(tmp_path, load_target(tmp_path))


def test_a_tensor_nobody_knows_is_not_ignored(tmp_path: Path) -> None:
    make_mtp_reference("deepseek_v3", tmp_path, 1)
    edit_tensors(tmp_path, {"model.layers.3.indexer.weight": torch.ones(2)})
    target = load_target(tmp_path)
    with pytest.raises(UserError, match=r"indexer.*no place"):
        load_mtp(tmp_path, target)
