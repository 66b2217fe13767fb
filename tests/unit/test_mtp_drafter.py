"""The draft cache is exact: whatever happened on the way, it holds what one pass over the whole text puts there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import MTP_FAMILIES, write_tiny
from paceline.cache.dense import DenseAttend
from paceline.config import EngineConfig
from paceline.drafters.mtp import MTPDrafter
from paceline.engine import scheduler
from paceline.engine.engine import Engine
from paceline.errors import UserError
from paceline.loaded import Loaded
from paceline.request import Request, SamplingParams

DEPTHS, BLOCK = 3, 8
BASE = EngineConfig(block_size=BLOCK, max_num_seqs=4, max_model_len=96, num_speculative_tokens=DEPTHS)


@pytest.fixture(scope="module", params=MTP_FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    changes = MTP_FAMILIES[request.param] | {"num_nextn_predict_layers": DEPTHS}
    directory = write_tiny(tmp_path_factory.mktemp("models") / "three", **changes)
    return Loaded.from_dir(directory, "float32")  # float32: the two ways of MLA agree to far less than any real error


class Recorder(DenseAttend):
    """Dense attention that keeps what a cache would hold. MLA hands over latents as in serving."""

    absorbed = True

    def __init__(self, length: int) -> None:
        super().__init__(torch.zeros(1, length, dtype=torch.int64))
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.kept[layer] = (k, v)
        return super().__call__(layer, q, k, v, scale)


@torch.inference_mode()
def from_scratch(loaded: Loaded, drafter: MTPDrafter, tokens: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Depth d's keys and values (index d - 1) for slots d, d + 1, ..: made from the whole text at once, in places."""
    ids = torch.tensor(tokens)
    features = loaded.target(ids, torch.arange(len(ids)), DenseAttend(torch.zeros(1, len(ids), dtype=torch.int64)))
    entries = []
    for d, depth in enumerate(drafter.mtp.depths[: len(ids) - 1], 1):
        attend = Recorder(len(ids) - d)
        features = depth(ids[d:], torch.arange(len(ids) - d), attend, features[: len(ids) - d])
        entries.append(attend.kept[d - 1])
    return entries


def assert_exact(loaded: Loaded, engine: Engine, requests: list[Request]) -> int:
    """Every absorbed slot of every running request; returns how many entries were compared."""
    drafter = engine.drafter
    assert isinstance(drafter, MTPDrafter)
    compared = 0
    for request in requests:
        if request.row < 0 or request.row not in drafter.reached:
            continue
        waiting = drafter.waiting.get(request.row)
        end = drafter.reached[request.row] if waiting is None else waiting.start
        slots = torch.tensor([request.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(end)], dtype=torch.int64)
        for d, entries in enumerate(from_scratch(loaded, drafter, request.tokens[:end]), 1):
            for cached, entry in zip((drafter.pool.k[d - 1], drafter.pool.v[d - 1]), entries, strict=True):
                torch.testing.assert_close(cached[slots[d:]].float(), entry.float(), rtol=1e-3, atol=1e-4)
            compared += len(entries[0])
    return compared


def run(loaded: Loaded, config: EngineConfig, prompts: list[list[int]], max_tokens: int, every: int = 3) -> int:
    engine, compared, steps = loaded.engine(config), 0, 0
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    requests = [r for i, p in enumerate(prompts) for r in engine.add_request(str(i), p, params)]
    while engine.has_unfinished:
        engine.step()
        steps += 1
        if steps % every == 0:
            compared += assert_exact(loaded, engine, requests)
    return compared


prompts = st.lists(st.lists(st.integers(4, 300), min_size=1, max_size=40), min_size=1, max_size=4)
modes = st.sampled_from(
    [
        {},
        {"num_speculative_tokens": 5},
        {"num_speculative_tokens": 4, "mtp_modules": 1},
        {"num_speculative_tokens": 2, "mtp_modules": 2},
        {"max_num_batched_tokens": 7},
        {"num_blocks": 13, "max_model_len": 80},  # too few for everyone: preemptions
        {"enable_prefix_caching": False},
    ]
)


@settings(max_examples=12, deadline=None)
@given(prompts=prompts, mode=modes)
def test_incremental_draft_cache_equals_one_from_scratch(
    loaded: Loaded, prompts: list[list[int]], mode: dict[str, int]
) -> None:
    assert run(loaded, replace(BASE, **mode), prompts, max_tokens=24) > 0


def test_prefix_hits_go_on_from_the_states_kept_beside_blocks(loaded: Loaded) -> None:
    shared = list(range(10, 10 + 4 * BLOCK))
    engine = loaded.engine(BASE)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    compared = 0
    for name, tail in (("first", [5]), ("second", [6, 7]), ("whole blocks", [])):
        (request,) = engine.add_request(name, shared + tail, params)
        while engine.has_unfinished:
            engine.step()
            compared += assert_exact(loaded, engine, [request])
        assert request.prefix_hit_tokens == (0 if name == "first" else 3 * BLOCK if not tail else 4 * BLOCK)
    assert compared > 100


def test_the_last_state_of_a_block_is_kept_though_the_pending_token_has_none(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_AHEAD", 0)
    engine = loaded.engine(BASE)
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    (first,) = engine.add_request("first", list(range(10, 9 + 2 * BLOCK)), params, num_speculative_tokens=0)
    while engine.has_unfinished:
        engine.step()
    assert len(first.tokens) == 2 * BLOCK + 1
    (second,) = engine.add_request("second", [*first.tokens, 5], SamplingParams(max_tokens=9, ignore_eos=True))
    for _ in range(3):
        engine.step()
    assert second.prefix_hit_tokens == 2 * BLOCK and assert_exact(loaded, engine, [second]) > 0


def test_who_leaves_does_not_overwrite_who_takes_its_blocks(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request is aborted, and in the same step the first one grows into the block of its last tokens."""
    monkeypatch.setattr(scheduler, "_AHEAD", 0)
    engine = loaded.engine(replace(BASE, num_blocks=3, max_model_len=3 * BLOCK))
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    stays, leaves = (
        engine.add_request(name, list(range(first, first + BLOCK - 1)), params, num_speculative_tokens=k)[0]
        for name, first, k in (("stays", 10, 0), ("leaves", 50, 3))
    )
    engine.step()
    engine.step()
    wanted = leaves.blocks[1]
    engine.abort("leaves")
    engine.step()
    assert stays.blocks[1] == wanted, "the block changed hands, or this tests nothing"
    assert assert_exact(loaded, engine, [stays]) > 0


def test_wrong_features_would_be_noticed(loaded: Loaded) -> None:
    """The comparison above can fail: with the target's states shifted by one place it does."""
    engine = loaded.engine(BASE)
    observe = engine.drafter.observe
    engine.drafter.observe = lambda seen: observe(replace(seen, hidden=seen.hidden.roll(1, 0)))  # type: ignore[method-assign]
    (request,) = engine.add_request("a", list(range(10, 40)), SamplingParams(max_tokens=8, ignore_eos=True))
    for _ in range(2):
        engine.step()
    with pytest.raises(AssertionError):
        assert_exact(loaded, engine, [request])


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    bare = Loaded.from_dir(write_tiny(tmp_path / "bare", num_nextn_predict_layers=0))
    with pytest.raises(UserError, match="MTP"):
        bare.engine(BASE)
