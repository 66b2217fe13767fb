"""The draft cache is exact: whatever happened on the way, it holds what one pass over the whole text puts there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import MTP_FAMILIES, write_tiny
from paceline.cache.dense import DenseAttend
from paceline.config import EngineConfig
from paceline.drafters import mtp
from paceline.drafters.mtp import MTPDrafter
from paceline.engine import scheduler
from paceline.engine.engine import Engine
from paceline.errors import UserError
from paceline.loaded import Loaded
from paceline.request import Request, SamplingParams
from paceline.spec import strands
from paceline.spec.width import StepFacts

DEPTHS, BLOCK = 3, 8
BASE = EngineConfig(block_size=BLOCK, max_num_seqs=4, max_model_len=96, num_speculative_tokens=DEPTHS)


@pytest.fixture(scope="module", params=MTP_FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    changes = MTP_FAMILIES[request.param] | {"num_nextn_predict_layers": DEPTHS}
    directory = write_tiny(tmp_path_factory.mktemp("models") / "three", **changes)
    return Loaded.from_dir(directory, "float32")  # float32: the two ways of MLA agree to far less than any real error


Entries = tuple[Tensor, Tensor]


class Recorder(DenseAttend):
    """Dense attention that keeps what a cache would hold. MLA hands over latents as in serving."""

    absorbed = True

    def __init__(self, length: int) -> None:
        super().__init__(torch.zeros(1, length, dtype=torch.int64))
        self.kept: dict[int, Entries] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.kept[layer] = (k, v)
        return super().__call__(layer, q, k, v, scale)


@torch.inference_mode()
def from_scratch(loaded: Loaded, drafter: MTPDrafter, tokens: list[int], firsts: list[int]) -> list[Entries]:
    """Depth d's keys and values (index d - 1) for slots firsts[d - 1] and on, as if these were all it ever saw: made
    from the whole text at once, in places."""
    ids = torch.tensor(tokens)
    features = loaded.target(ids, torch.arange(len(ids)), DenseAttend(torch.zeros(1, len(ids), dtype=torch.int64)))
    entries, before = [], 0  # the slot of features[0]
    for d, (depth, first) in enumerate(zip(drafter.mtp.depths, firsts, strict=True), 1):
        if first >= len(ids):
            break
        attend = Recorder(len(ids) - first)
        features = features[first - 1 - before : len(ids) - 1 - before]
        features = depth(ids[first:], torch.arange(first - d, len(ids) - d), attend, features)
        entries.append(attend.kept[d - 1])
        before = first
    return entries


def assert_exact(loaded: Loaded, engine: Engine, requests: list[Request]) -> int:
    """Every slot that a module sees of every running request; returns how many entries were compared."""
    drafter = engine.drafter
    assert isinstance(drafter, MTPDrafter)
    compared = 0
    for request in requests:
        if request.row < 0 or request.row not in drafter.tracks:
            continue
        ways = drafter.tracks[request.row].strands
        end = max(strand.start for strand in ways)
        scratch = from_scratch(loaded, drafter, request.tokens[:end], [strand.first for strand in ways])
        for d, (strand, entries) in enumerate(zip(ways, scratch, strict=False)):
            seen = range(strand.first, strand.start)
            slots = torch.tensor([request.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in seen], dtype=torch.int64)
            for cached, entry in zip((drafter.pool.k[d], drafter.pool.v[d]), entries, strict=True):
                torch.testing.assert_close(cached[slots].float(), entry[: len(seen)].float(), rtol=1e-3, atol=1e-4)
            compared += len(seen)
    return compared


class Whim:
    """Widths from a seed, often 0, and a change of mind after each draft."""

    listens = asks = True
    idle = 0

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def widths(self, ready: list[Request]) -> list[int]:
        if self.rng.random() < 0.4:  # nobody drafts
            return [0] * len(ready)
        return [self.rng.choice((0, 1, 2, 3, 5)) for _ in ready]

    def deeper(self, depth: int, requests: Sequence[Request], confidences: Sequence[float]) -> list[bool]:
        assert len(confidences) == len(requests) and all(value <= 1e-3 for value in confidences)
        return [self.rng.random() < 0.7 for _ in requests]

    def cut(self, requests: list[Request], drafted: list[int]) -> list[int]:
        return drafted

    def skip(self, steps: int) -> None:
        pass

    def learn(self, facts: StepFacts) -> None:
        pass

    def as_dict(self) -> dict[str, Any]:
        return {}


def run(
    loaded: Loaded,
    config: EngineConfig,
    prompts: list[list[int]],
    max_tokens: int,
    every: int = 3,
    whim: int | None = None,
    look_back: int = 0,
) -> int:
    """look_back: the drafter's window. Attention that is not compiled sees all that was read."""
    engine, compared, steps = loaded.engine(config), 0, 0
    assert isinstance(engine.drafter, MTPDrafter)
    engine.drafter.window = look_back
    rng = random.Random(whim)
    if whim is not None:
        engine.policy.policy = Whim(whim)
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    requests = [r for i, p in enumerate(prompts) for r in engine.add_request(str(i), p, params)]
    while engine.has_unfinished:
        for request in requests:
            if whim is not None:  # it decides all widths by itself, but what is read of a prompt goes by this
                request.num_speculative_tokens = rng.choice((0, None, None))
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


@settings(max_examples=12, deadline=None)
@given(
    prompts=prompts,
    mode=modes,
    whim=st.integers(0, 2**20),
    window=st.sampled_from([1, 3, 8, 64]),
    asleep=st.sampled_from([1, 2, 32]),
    look_back=st.sampled_from([0, 1, 9, 30]),
)
@example(prompts=[[4, 4], [4], [4]], mode={"max_num_batched_tokens": 7}, whim=125, window=1, asleep=32, look_back=0)
def test_what_modules_see_is_exact_whoever_drafts_how_much_and_when(
    loaded: Loaded, prompts: list[list[int]], mode: dict[str, int], whim: int, window: int, asleep: int, look_back: int
) -> None:
    """Requests of width 0 rest, and so do modules that a draft does not reach; little of what waits is kept here, and
    a step or two without drafts may put all to sleep. The
    prompts share their beginnings, so that many blocks are found which modules read wholly, partly or not at all."""
    config = replace(BASE, **({"num_speculative_tokens": 5} | mode))
    shared = [prompts[0][:20] + prompt for prompt in prompts * 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strands, "WINDOW", window)
        patch.setattr(strands, "MOST", window + window // 2)
        patch.setattr(mtp, "MOST", window + window // 2)
        patch.setattr(mtp, "_ASLEEP", asleep)
        run(loaded, config, shared, max_tokens=24, every=2, whim=whim, look_back=look_back)


def test_who_does_not_draft_costs_no_module_a_pass(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor any memory that grows; one draft costs one module; afterwards the last tokens are seen."""
    passes: list[int] = []
    forward = MTPDrafter.forward
    monkeypatch.setattr(MTPDrafter, "forward", lambda self, d, *rest: passes.append(d) or forward(self, d, *rest))
    monkeypatch.setattr(mtp, "_ASLEEP", 1000)
    engine = loaded.engine(replace(BASE, max_model_len=250))
    (request,) = engine.add_request("a", list(range(10, 40)), SamplingParams(max_tokens=210, ignore_eos=True))
    request.num_speculative_tokens = 0
    for _ in range(130):
        engine.step()
    drafter = engine.drafter
    assert isinstance(drafter, MTPDrafter)
    track = drafter.tracks[request.row]
    assert passes == [] and strands.WINDOW <= track.strands[0].waiting <= strands.MOST + 1
    request.num_speculative_tokens = 1
    for _ in range(5):
        engine.step()
    assert passes == [1] * 5 and len(request.tokens) - track.strands[0].first > strands.WINDOW
    request.num_speculative_tokens = 3
    engine.step()
    assert passes == [1] * 6 + [2, 3]
    engine.step()
    assert assert_exact(loaded, engine, [request]) > 2 * strands.WINDOW


def test_where_nobody_drafts_for_long_nothing_is_followed(loaded: Loaded) -> None:
    """Whoever is back drafts again from the step after the next one on."""
    engine = loaded.engine(replace(BASE, max_model_len=250))
    (request,) = engine.add_request("a", list(range(10, 40)), SamplingParams(max_tokens=210, ignore_eos=True))
    request.num_speculative_tokens = 0
    for _ in range(60):
        engine.step()
    drafter = engine.drafter
    assert isinstance(drafter, MTPDrafter) and drafter.asleep and not drafter.tracks
    request.num_speculative_tokens = 3
    for _ in range(4):
        engine.step()
    assert not drafter.asleep and request.stats.drafted >= 6
    assert assert_exact(loaded, engine, [request]) > 0


def test_prompts_are_read_for_nobody_once_nobody_drafts(loaded: Loaded) -> None:
    config = replace(BASE, max_num_batched_tokens=9, max_model_len=250, enable_prefix_caching=False)
    engine = loaded.engine(config)
    drafter = engine.drafter
    assert isinstance(drafter, MTPDrafter)
    params = SamplingParams(max_tokens=230, ignore_eos=True)
    (first,) = engine.add_request("first", [5], params)
    engine.step()
    followed = []
    for name, width in (("a", 3), ("b", 0)):
        first.num_speculative_tokens = width
        for _ in range(25):
            engine.step()
        (request,) = engine.add_request(name, list(range(10, 90)), params)
        for _ in range(6):
            engine.step()
        assert request.lag > 1
        followed.append(drafter.tracks[request.row].strands[0].start > 1)
        engine.abort(name)
    assert followed == [True, False]


@pytest.mark.parametrize("batched", [512, 33, 20, 7])
def test_of_a_long_prompt_only_what_drafts_see_is_read(loaded: Loaded, batched: int) -> None:
    """As many places as the window has, whatever the chunks; what is read is exact."""
    engine, look_back = loaded.engine(replace(BASE, max_num_batched_tokens=batched)), 16
    drafter = engine.drafter
    assert isinstance(drafter, MTPDrafter)
    drafter.window = look_back
    (request,) = engine.add_request("a", list(range(10, 80)), SamplingParams(max_tokens=16, ignore_eos=True))
    while request.lag > 1:
        engine.step()
        assert all(
            strand.start - strand.first <= look_back for track in drafter.tracks.values() for strand in track.strands
        )
    for _ in range(2):
        engine.step()
    first = drafter.tracks[request.row].strands[0].first
    assert request.num_prompt - look_back <= first <= request.num_prompt - look_back + 1
    assert assert_exact(loaded, engine, [request]) > 2 * look_back


def test_a_short_rest_loses_nothing(loaded: Loaded) -> None:
    engine = loaded.engine(BASE)
    (request,) = engine.add_request("a", list(range(10, 40)), SamplingParams(max_tokens=60, ignore_eos=True))
    for width in [3] * 4 + [0] * 20 + [3] * 3:
        request.num_speculative_tokens = width
        engine.step()
    drafter = engine.drafter
    assert isinstance(drafter, MTPDrafter)
    assert drafter.tracks[request.row].firsts(DEPTHS) == tuple(range(1, DEPTHS + 1))
    assert assert_exact(loaded, engine, [request]) > 3 * 50


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
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    (first,) = engine.add_request("first", list(range(10, 8 + 2 * BLOCK)), params, num_speculative_tokens=1)
    while engine.has_unfinished:
        engine.step()
    assert len(first.tokens) == 2 * BLOCK + 1
    (second,) = engine.add_request("second", [*first.tokens, 5], SamplingParams(max_tokens=9, ignore_eos=True))
    for _ in range(3):
        engine.step()
    drafter = engine.drafter
    assert isinstance(drafter, MTPDrafter)
    assert second.prefix_hit_tokens == 2 * BLOCK and drafter.tracks[second.row].strands[0].first == 1
    assert assert_exact(loaded, engine, [second]) > 2 * BLOCK


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
    stays.num_speculative_tokens = 1
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


def test_modules_beside_few_layers_look_back_less() -> None:
    """Unless the user says how far."""
    assert (BASE.window_of(16), BASE.window_of(17)) == (256, 0)
    assert (replace(BASE, draft_window=0).window_of(2), replace(BASE, draft_window=9).window_of(99)) == (0, 9)
    with pytest.raises(UserError, match="draft_window must be 0"):
        replace(BASE, draft_window=-1)


def test_a_window_is_refused_where_modules_would_see_all(loaded: Loaded) -> None:
    with pytest.raises(UserError, match="draft_window 4 is for MTP modules that are one compiled call"):
        loaded.engine(replace(BASE, draft_window=4))
    loaded.engine(replace(BASE, draft_window=0))
