"""Drafting in one call leaves what drafting module by module leaves, bit for bit."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import write_tiny
from paceline.config import EngineConfig
from paceline.drafters.mtp import MTPDrafter
from paceline.engine.engine import Engine
from paceline.kernels import native
from paceline.loaded import Loaded
from paceline.request import Request, SamplingParams
from paceline.spec.width import FixedWidth

pytestmark = pytest.mark.skipif(
    not hasattr(native.library(), "draft_chain"), reason="this CPU has no bf16 products of our own"
)
BASE = EngineConfig(
    block_size=8, max_num_seqs=4, max_model_len=96, num_speculative_tokens=6, num_blocks=52, num_scheduler_steps=1
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Three modules, each in one call."""
    sizes = {"kv_lora_rank": 256, "qk_rope_head_dim": 32, "n_group": 1, "num_nextn_predict_layers": 3}
    return Loaded.from_dir(write_tiny(tmp_path_factory.mktemp("models") / "three", **sizes))


class Widths(FixedWidth):
    """From a seed, often the same for all, often 0; deep ones only now and then."""

    def __init__(self, seed: int) -> None:
        super().__init__(0)
        self.rng, self.steps = random.Random(seed), 0

    def widths(self, ready: list[Request]) -> list[int]:
        self.steps += 1
        if self.steps % 24 > 9:  # so long that modules behind the first fall out of use
            return [self.rng.choice((1, 1, 1, 0)) for _ in ready]
        same = self.rng.choice((None, None, 0, 1, 3, 4))
        return [self.rng.choice((0, 1, 2, 3, 5)) if same is None else same for _ in ready]


def drafter_of(engine: Engine) -> MTPDrafter:
    assert isinstance(engine.drafter, MTPDrafter)
    return engine.drafter


def assert_same(one: MTPDrafter, other: MTPDrafter) -> None:
    for mine, theirs in zip(one.pool.memory, other.pool.memory, strict=True):
        assert torch.equal(mine, theirs)
    assert one.known == other.known and torch.equal(one.kept, other.kept)
    assert one.tracks.keys() == other.tracks.keys()
    for row, track in one.tracks.items():
        assert (track.drafts, track.goes_on) == (other.tracks[row].drafts, other.tracks[row].goes_on)
        for a, b in zip(track.strands, other.tracks[row].strands, strict=True):
            assert (a.first, a.start, a.waiting, a.passed) == (b.first, b.start, b.waiting, b.passed)
            for mine, theirs in ((a.features, b.features), (a.past, b.past)):
                assert torch.equal(torch.cat([one.kept[0, :0], *mine]), torch.cat([one.kept[0, :0], *theirs]))


def few_words(head: Tensor) -> None:
    """Few tokens are ever chosen, so that some drafts are right. head [vocab / 32, hidden / 2, 32, 2], or of codes
    [vocab / 32, bytes], of which the second 128 bytes are scales."""
    factors = head[:, 128:256].view(torch.float32)[:, None, :, None] if head.dtype == torch.int8 else head
    factors[0, :, 3:], factors[1:] = 0, 0


def compare(
    loaded: Loaded, config: EngineConfig, prompts: list[list[int]], seed: int, heats: list[float | None]
) -> tuple[int, int]:
    """Steps both ways, side by side. How often the call served, and how many drafts were right.

    heats: temperatures, in turn; None: the request has a penalty too, which the call is not for."""
    engines = [loaded.engine(config) for _ in range(2)]
    short, long = map(drafter_of, engines)
    chain, served = short.chain, 0
    assert chain is not None and long.chain is not None and loaded.target.lm_head.packed is not None
    for head in (chain.depths[0].head, long.chain.depths[0].head, loaded.target.lm_head.packed):
        few_words(head)

    def counted(*args: Any) -> Any:
        nonlocal served
        served += 1
        return chain(*args)

    short.chain, long.chain = counted, None  # type: ignore[assignment]
    requests = []
    for engine in engines:
        engine.policy.policy = Widths(seed)
        for i, prompt in enumerate(prompts):
            heat = heats[i % len(heats)]
            how = {"presence_penalty": 0.5, "temperature": 1.0} if heat is None else {"temperature": heat}
            params = SamplingParams(max_tokens=20, ignore_eos=True, seed=seed + i, **how)
            requests += engine.add_request(str(i), prompt, params)
    while engines[0].has_unfinished:
        for engine in engines:
            engine.step()
        assert_same(short, long)
    return served, sum(request.stats.accepted for request in requests)


def add_some(engine: Engine, seed: int) -> None:
    engine.policy.policy, drafter_of(engine).use = Widths(seed), [1.0, 0.0, 0.0]
    for i in range(4):
        params = SamplingParams(max_tokens=60, ignore_eos=True, seed=i, temperature=i / 4)
        engine.add_request(str(i), list(range(10 + i, 20 + 5 * i)), params)


prompts = st.lists(st.lists(st.integers(4, 300), min_size=1, max_size=40), min_size=1, max_size=6)
modes: list[dict[str, Any]] = [
    {},
    {"draft_quantization": "none"},
    {"mtp_modules": 1},
    {"draft_window": 11},
    {"max_num_batched_tokens": 9},
    {"num_blocks": 13, "max_model_len": 80},  # too few for everyone: preemptions
    {"enable_prefix_caching": False},
]


@settings(max_examples=15, deadline=None)
@given(
    prompts=prompts,
    mode=st.sampled_from(modes),
    seed=st.integers(0, 2**62),
    heats=st.sampled_from([[0.0], [0.0], [0.7], [0.0, 1.0, 2.5], [0.0, 1.0, 0.0, None]]),
)
def test_one_call_leaves_what_a_call_a_module_leaves(
    loaded: Loaded, prompts: list[list[int]], mode: dict[str, Any], seed: int, heats: list[float | None]
) -> None:
    """The prompts share their beginnings, so that blocks are found again."""
    compare(loaded, replace(BASE, **mode), [prompts[0][:20] + prompt for prompt in prompts], seed, heats)


@pytest.mark.parametrize("heats", [[0.0], [0.3, 0.0]], ids=str)
@pytest.mark.parametrize(("kind", "dtype"), [("auto", torch.int8), ("none", torch.bfloat16)])
def test_the_comparison_compares(loaded: Loaded, heats: list[float | None], kind: str, dtype: torch.dtype) -> None:
    """The call serves, in int8 or in bf16, some drafts are right and some are not."""
    config = replace(BASE, draft_quantization=kind)
    chain = drafter_of(loaded.engine(config)).chain
    assert chain is not None and {depth.head.dtype for depth in chain.depths} == {dtype}
    served, right = compare(loaded, config, [list(range(10 + i, 20 + 5 * i)) for i in range(4)], 5, heats)
    assert served > 5 and right > 5


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_what_nobody_hears_changes_no_draft(
    loaded: Loaded, seed: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules that leave out outputs, and make them later if somebody wants to draft deeper, against modules that make
    them all."""
    engines = [loaded.engine(replace(BASE, enable_prefix_caching=False)) for _ in range(2)]
    quiet, loud = map(drafter_of, engines)
    monkeypatch.setattr(loud, "is_last", lambda depth: False)
    passed = deep = 0
    for engine in engines:
        add_some(engine, seed)
        if not at_once:
            drafter_of(engine).chain = None
    while engines[0].has_unfinished:
        for engine in engines:
            engine.step()
        for row, track in quiet.tracks.items():
            assert track.drafts == loud.tracks[row].drafts
            passed += track.strands[0].passed > 8
            deep += len(track.drafts) > 1
    assert passed > 10 and deep > 10


def test_how_far_modules_look_back_is_a_matter_of_drafts_alone(loaded: Loaded) -> None:
    texts, memories = [], []
    for window in (0, 4):
        engine = loaded.engine(replace(BASE, draft_window=window))
        (request,) = engine.add_request("a", list(range(10, 40)), SamplingParams(max_tokens=30, ignore_eos=True))
        while engine.has_unfinished:
            engine.step()
        texts.append(request.tokens)
        memories.append(drafter_of(engine).pool.memory)
    assert texts[0] == texts[1]
    assert any(not torch.equal(one, other) for one, other in zip(*memories, strict=True)), "or this tests nothing"
