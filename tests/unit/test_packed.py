"""Packed layers say what plain ones say, and a row says the same among any others, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import MTP_FAMILIES, random_weights, tiny_config
from paceline.batch import Row, make_batch
from paceline.cache.attend import PagedAttend, Wanted
from paceline.cache.pool import Pool
from paceline.config import ModelConfig
from paceline.kernels import gated, native, pack_weight, rowwise
from paceline.kernels.cpu import GRAIN
from paceline.kernels.mla import from_state
from paceline.kernels.pages import Pages
from paceline.layers.basic import Linear
from paceline.layers.moe import Router
from paceline.models import build_model, build_mtp
from paceline.models.decoder import DecoderModel
from paceline.models.mtp import MTP, MTPDepth

BF16 = torch.bfloat16
needs_bf16 = pytest.mark.skipif(
    pack_weight(torch.ones(4, 4, dtype=BF16)) is None, reason="this CPU has no bf16 products"
)

QWEN3_MOE = {"model_type": "qwen3_moe", "num_nextn_predict_layers": 0, "num_key_value_heads": 2, "head_dim": 32}
FEW_HEADS = {"kv_lora_rank": 256}
ONE_CALL = FEW_HEADS | {"qk_rope_head_dim": 32, "n_group": 1}
SHAPES: dict[str, dict[str, Any]] = {
    "small: heads and experts fused": {},
    "few heads: attention in one call": FEW_HEADS | {"qk_rope_head_dim": 32},
    "few heads of uneven size": FEW_HEADS,
    "few heads, one group: layers in one call": ONE_CALL,
    "layers in one call, no shared expert": ONE_CALL | {"n_shared_experts": 0},
    "query rank: heads apart": {"q_lora_rank": 48},
    "large experts: one by one": {"n_routed_experts": 32, "moe_intermediate_size": 192, "n_group": 1},
    "no shared expert": {"n_shared_experts": 0},
    "grouped heads, partly turned": MTP_FAMILIES["glm4_moe"],
    "dense, biases": MTP_FAMILIES["mimo"],
    "softmax router": QWEN3_MOE | {"num_experts": 8},
    "softmax router, large experts": QWEN3_MOE | {"num_experts": 32, "moe_intermediate_size": 192},
}


def model_of(changes: dict[str, Any]) -> DecoderModel:
    config = ModelConfig.from_dict(tiny_config(**changes))
    model = build_model(config).to(BF16).eval().requires_grad_(False)
    fill(model, config)
    return model


def fill(model: DecoderModel | MTP, config: ModelConfig) -> None:
    """Values as `random_weights` draws them; a router's bias is in float32."""
    for part in model.modules():
        if isinstance(part, Router) and part.e_score_correction_bias is not None:
            part.e_score_correction_bias.data = part.e_score_correction_bias.data.to(torch.float32)
    values = random_weights(config)
    for name, view in model.weights().items():
        view.copy_(values[name])


@torch.inference_mode()
def states(model: DecoderModel, tokens: list[int], chunks: list[int], tables: list[int]) -> Tensor:
    """The states of `tokens`, read in chunks of these sizes."""
    pool, parts, place = Pool(model.cache, 64, 8, model.norm.weight.dtype), [], 0
    for size in chunks:
        batch = make_batch([Row(tokens[place : place + size], place, tables)], 8)
        parts.append(model(batch.tokens, batch.positions, PagedAttend(pool, batch)))
        place += size
    return torch.cat(parts)


@needs_bf16
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_packed_model_agrees_with_plain_and_with_itself(changes: dict[str, Any]) -> None:
    plain = model_of(changes)
    packed = copy.deepcopy(plain)
    packed.pack()
    texts = [torch.randint(4, 300, (96,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(1, 6)]
    exact, error, plain_error = copy.deepcopy(plain).float(), 0.0, 0.0
    for tokens in texts:
        truth = states(exact, tokens, [96], list(range(12)))
        # of each row, and of several texts, as a near tie between experts may turn many rows: as near to float32 as
        # plain bf16 is
        error += float((states(packed, tokens, [96], list(range(12))).float() - truth).abs().mean(1).median())
        plain_error += float((states(plain, tokens, [96], list(range(12))).float() - truth).abs().mean(1).median())
    assert error < 1.3 * plain_error + 5e-3
    tokens = texts[0]
    whole = states(packed, tokens, [96], list(range(12)))
    for chunks, tables in (
        ([90, *[1] * 6], range(20, 32)),
        ([4] * 24, range(12)),
        ([1, 2, 3, 5, 8, 77], range(60, 0, -5)),
    ):
        assert torch.equal(states(packed, tokens, chunks, list(tables)), whole)


@pytest.mark.skipif(not hasattr(native.library(), "mla"), reason="this CPU has no bf16 products of our own")
def test_attention_in_one_call_is_for_whole_blocks() -> None:
    """So that the comparison above compares what it says."""
    for rope, found in ((8, False), (32, True)):
        model = model_of(FEW_HEADS | {"qk_rope_head_dim": rope})
        model.pack()
        assert all((layer._half is not None) == found for layer in model.layers)


@pytest.mark.parametrize("rank", [96, 24])
def test_keys_and_values_come_straight_from_the_state(rank: int) -> None:
    """They are what the normed latent makes of them, whether the latent is longer than the state or not."""
    generator = torch.Generator().manual_seed(rank)
    down, up = torch.randn(rank + 8, 48, generator=generator), torch.randn(40, rank, generator=generator)
    norm, x = torch.rand(rank, generator=generator) + 0.5, torch.randn(20, 48, generator=generator)
    root, rotary, kept = (x @ from_state(down, 8, norm, up).T).split((min(rank, 48), 8, 40), dim=1)
    latent, turned = (x @ down.T).split((rank, 8), dim=1)
    rms = latent.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(root.square().mean(1, keepdim=True).sqrt(), rms)
    torch.testing.assert_close(rotary, turned)
    torch.testing.assert_close(kept / rms, (norm * latent / rms) @ up.T, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(native.library(), "decoder_layer"), reason="this CPU has no bf16 products of our own")
@pytest.mark.parametrize("raw_features", [False, True], ids=["normed", "raw"])
def test_parts_of_a_layer_in_one_call_are_packed_when_they_are_asked(raw_features: bool) -> None:
    """Not in memory a third time before; then once, and they say the same. So do the layers of a stack."""
    model = model_of(ONE_CALL)
    model.raw_features = raw_features
    model.pack()
    parts = [part for layer in model.layers for part in layer.modules() if isinstance(part, Linear)]
    assert parts and all(layer.whole is not None for layer in model.layers)
    tokens = list(range(4, 24))
    whole = states(model, tokens, [20], list(range(12)))
    assert [part._packed for part in parts] == [None] * len(parts) and model.lm_head._packed is not None
    assert model._whole is not None
    model._whole = None
    assert torch.equal(states(model, tokens, [20], list(range(12))), whole)
    assert [part._packed for part in parts] == [None] * len(parts)
    for layer in model.layers:
        layer.whole = None
    assert torch.equal(states(model, tokens, [20], list(range(12))), whole)
    for layer in model.layers:
        layer._half = None
    found = states(model, tokens, [20], list(range(12)))
    apart = (found - whole).float().norm(dim=1) / whole.float().norm(dim=1)
    assert apart.median() < 0.02 and apart.max() < 0.05  # of a row, in other roundings
    asked = [part._packed for part in parts if part._packed is not None]
    assert len(asked) == 4 * len(model.layers) and not any(packed.is_inference() for packed in asked)
    states(model, tokens, [20], list(range(12)))
    assert all(
        now is before for now, before in zip((p.packed for p in parts if p._packed is not None), asked, strict=True)
    )


@pytest.mark.skipif(not hasattr(native.library(), "mtp_module"), reason="this CPU has no bf16 products of our own")
@torch.inference_mode()
def test_a_module_in_one_call_says_what_its_parts_say() -> None:
    """Bit for bit, all rows at once and in chunks; and so its layer in one call. In int8 about the same."""
    model = model_of(ONE_CALL)
    mtp = build_mtp(model.config, model, 1).to(BF16).requires_grad_(False)
    fill(mtp, model.config)
    mtp.pack()
    (module,) = mtp.depths
    model.pack()
    assert isinstance(module, MTPDepth) and all(layer.whole is not None for layer in model.layers)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 300, (50,), generator=generator).tolist()
    features = torch.randn(50, 64, generator=generator).to(BF16)

    def outputs(chunks: list[int]) -> Tensor:
        pool, parts, place = Pool(mtp.cache, 64, 8, BF16), [], 1
        for size, some in zip(chunks, features.split(chunks), strict=True):
            batch = make_batch([Row(tokens[place - 1 : place - 1 + size], place, list(range(9)))], 8, first=1)
            parts.append(module(batch.tokens, batch.positions, PagedAttend(pool, batch), some))
            place += size
        return torch.cat(parts)

    assert module._whole is not None and module.block.whole is not None

    def wanted(rows: list[int], tail: int) -> tuple[Tensor, Tensor]:
        """The last `tail` outputs of each of some requests; their other rows only leave keys and values."""
        pool, starts = Pool(mtp.cache, 64, 8, BF16), [sum(rows[:i]) for i in range(len(rows))]
        each = [
            Row(tokens[start : start + n], 1, list(range(9 * i, 9 * i + 9)))
            for i, (start, n) in enumerate(zip(starts, rows, strict=True))
        ]
        ends = [row._replace(tokens=row.tokens[-tail:], place=1 + len(row.tokens) - tail) for row in each]
        index = [start + n - tail + i for start, n in zip(starts, rows, strict=True) for i in range(tail)]
        batch, some = make_batch(each, 8, first=1), Wanted(torch.tensor(index), make_batch(ends, 8, first=1))
        everything = module(batch.tokens, batch.positions, PagedAttend(pool, batch), features)
        other = Pool(mtp.cache, 64, 8, BF16)
        found = module(batch.tokens, batch.positions, PagedAttend(other, batch, some), features)
        assert torch.equal(found, everything[index]) and found.shape[0] == tail * len(rows)
        return pool.memory[0], other.memory[0]

    whole = outputs([50])
    assert torch.equal(outputs([1, 2, 3, 5, 39]), whole)
    for rows, tail in (([50], 1), ([20, 30], 1), ([7, 13, 30], 5)):
        assert torch.equal(*wanted(rows, tail))
    mtp.pack(codes=True)
    assert torch.equal(*wanted([20, 30], 2))
    assert mtp.codes
    coded = outputs([50])
    assert torch.equal(outputs([1, 2, 3, 5, 39]), coded)
    apart = (coded - whole).float().norm(dim=1) / whole.float().norm(dim=1)
    assert 0 < apart.median() < 0.05  # of a row: a near tie between experts may turn a few rows
    words, heads = model.lm_head(coded).float(), module.logits(coded).float()
    assert 0 < (heads - words).norm() < 0.03 * words.norm()
    mtp.pack()
    module._whole = None
    assert torch.equal(outputs([50]), whole)
    module.block.whole = None
    assert torch.equal(outputs([30, 20]), whole)


@needs_bf16
@pytest.mark.parametrize("inputs", [64, 1000, 2048, 4096])
def test_a_packed_row_has_the_same_bits_at_any_row_count(inputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    linear = Linear(inputs, 96).to(BF16).requires_grad_(False)
    linear.weight.normal_(generator=generator)
    x = torch.randn(256, inputs, generator=generator).to(BF16)
    linear.pack(Pages())
    whole = linear(x)
    for rows in (1, 2, 3, 5, 16, 100):
        assert torch.equal(torch.cat([linear(part) for part in x.split(rows)]), whole)


@pytest.mark.parametrize("width", [40, 96, 7000])
def test_a_row_of_silu_has_the_same_bits_in_a_tensor_that_threads_share(width: int) -> None:
    x = torch.randn(2 * GRAIN // width + 3, 2 * width, generator=torch.Generator().manual_seed(width))
    with torch.no_grad():
        whole = gated(x)
        assert torch.equal(torch.cat([gated(row) for row in x.split(1)]), whole)


def test_rowwise_is_the_function() -> None:
    x = torch.randn(9, GRAIN // 4)
    with torch.no_grad():
        torch.testing.assert_close(rowwise(torch.sigmoid, x), torch.sigmoid(x))
