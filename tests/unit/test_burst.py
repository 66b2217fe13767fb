"""A step of several rounds leaves what as many steps leave, bit for bit: tokens, statistics, caches, and what
modules wait for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chain import few_words
from torch import Tensor

from conftest import write_tiny
from paceline.config import EngineConfig
from paceline.drafters import mtp
from paceline.drafters.mtp import MTPDrafter
from paceline.engine.burst import _Pace
from paceline.engine.engine import Engine
from paceline.engine.stats import EngineStats
from paceline.kernels import native
from paceline.loaded import Loaded
from paceline.request import Request, SamplingParams
from paceline.spec.width import FixedWidth

pytestmark = pytest.mark.skipif(
    not hasattr(native.library(), "run_rounds"), reason="this CPU has no bf16 products of our own"
)
BASE = EngineConfig(block_size=8, max_num_seqs=4, max_model_len=128, num_speculative_tokens=6, num_blocks=70)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Three modules, each in one call; few tokens are ever chosen, so that some drafts are right."""
    sizes = {"kv_lora_rank": 256, "qk_rope_head_dim": 32, "n_group": 1, "num_nextn_predict_layers": 3}
    found = Loaded.from_dir(write_tiny(tmp_path_factory.mktemp("models") / "three", **sizes))
    assert found.target.lm_head.packed is not None
    few_words(found.target.lm_head.packed)
    return found


@pytest.fixture(autouse=True, scope="module")
def use_stays() -> Iterator[None]:
    """Which modules are used of late is counted in steps, and here stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mtp, "_LATE", 0.0)
        patch.setattr(mtp, "_ASLEEP", 1 << 30)
        yield


class Spells(FixedWidth):
    """Widths that stay for a spell of rounds, from a seed and the number of the round alone."""

    def __init__(self, seed: int, length: int, choices: tuple[int, ...]) -> None:
        super().__init__(0)
        self.seed, self.length, self.choices, self.round = seed, length, choices, 0

    def widths(self, ready: list[Request]) -> list[int]:
        rng = random.Random(self.seed + self.round // self.length)
        self.round += 1
        same = rng.choice((None, *self.choices))
        return [same if same is not None else random.Random(rng.random()).choice(self.choices) for _ in ready]

    @property
    def idle(self) -> int:  # type: ignore[override]
        return -self.round % self.length

    def skip(self, steps: int) -> None:
        self.round += steps


class Unhurried:
    """As if rounds took no time."""

    def rounds(self, stats: EngineStats) -> int:
        return 1 << 20


def engine_of(
    loaded: Loaded, config: EngineConfig, policy: FixedWidth, prompts: list[list[int]], how: list[dict[str, Any]]
) -> tuple[Engine, list[Request]]:
    engine, requests = loaded.engine(config), []
    engine.policy.policy = policy
    if engine.burst is not None:
        engine.burst._pace = Unhurried()  # type: ignore[assignment]
    for i, prompt in enumerate(prompts):
        params = SamplingParams(**{"max_tokens": 40, "ignore_eos": True, "seed": i} | how[i % len(how)])
        requests += engine.add_request(str(i), prompt, params)
    return engine, requests


def slots_of(request: Request, size: int) -> Tensor:
    places = torch.arange(request.cached)
    return torch.tensor(request.blocks)[places // size] * size + places % size


def assert_same_request(one: Request, other: Request) -> None:
    assert one.tokens == other.tokens and one.cached == other.cached and one.origins == other.origins
    assert one.stats == other.stats and one.finish_reason == other.finish_reason


def assert_same_modules(engines: list[Engine], pairs: list[tuple[Request, Request]]) -> int:
    """What modules made of committed tokens, what they know of blocks, and what waits. How many features do."""
    one, other = (engine.drafter for engine in engines)
    assert isinstance(one, MTPDrafter) and isinstance(other, MTPDrafter)
    size, waiting = one.pool.block_size, 0
    for mine, theirs in ((a, b) for a, b in pairs if a.row in one.tracks and b.row in other.tracks):
        tracks = one.tracks[mine.row], other.tracks[theirs.row]
        for track in tracks:
            track.plan(0, False)  # a step of its own begins with that, and drops what will not be read
        strands = zip(*(track.strands for track in tracks), strict=True)
        for d, (a, b) in enumerate(strands):
            assert (a.first, a.start, a.waiting, a.passed) == (b.first, b.start, b.waiting, b.passed)
            for x, y in ((a.features, b.features), (a.past, b.past)):
                assert torch.equal(torch.cat([one.kept[0, :0], *x]), torch.cat([one.kept[0, :0], *y]))
            seen = slice(a.first, min(a.start, mine.cached))
            left, right = one.pool.memory[d], other.pool.memory[d]
            assert torch.equal(left[slots_of(mine, size)[seen]], right[slots_of(theirs, size)[seen]])
            for i in range(mine.cached // size):
                x, y = mine.blocks[i], theirs.blocks[i]
                assert one.known[d][x] == other.known[d][y]
                if one.known[d][x] is not None and d + 1 < len(one.known):
                    assert torch.equal(one.kept[d + 1, x], other.kept[d + 1, y])
                assert torch.equal(one.kept[0, x], other.kept[0, y])
            waiting += a.waiting
    return waiting


def compare(
    loaded: Loaded,
    config: EngineConfig,
    prompts: list[list[int]],
    how: list[dict[str, Any]],
    seed: int,
    choices: tuple[int, ...],
    use: list[float],
) -> tuple[int, int, int]:
    """One engine has steps of several rounds, the other of one. Rounds saved, drafts that were right, features
    that waited."""
    sizes = [config, replace(config, num_scheduler_steps=1)]
    made = [engine_of(loaded, each, Spells(seed, 7, choices), prompts, how) for each in sizes]
    (fast, ours), (slow, theirs) = made
    assert fast.burst is not None and slow.burst is None
    for engine, _ in made:
        assert isinstance(engine.drafter, MTPDrafter) and engine.drafter.chain is not None
        for depth in engine.drafter.chain.depths:
            few_words(depth.head)
        engine.drafter.use = use[: len(engine.drafter.modules)]
    pairs, steps, waited = list(zip(ours, theirs, strict=True)), 0, 0
    while fast.has_unfinished:
        brought = {output.request.id: len(output.tokens) for output in fast.step()}
        steps += 1
        while slow.stats.steps < fast.stats.steps:
            for output in slow.step():
                brought[output.request.id] -= len(output.tokens)
        assert not any(brought.values())
        for one, other in pairs:
            assert_same_request(one, other)
        waited += assert_same_modules([fast, slow], pairs)
    assert (fast.stats.steps, fast.stats.read, fast.stats.emitted) == (
        slow.stats.steps, slow.stats.read, slow.stats.emitted
    )  # fmt: skip
    assert fast.stats.speculation == slow.stats.speculation
    return fast.stats.steps - steps, fast.stats.speculation.accepted, waited


prompts = st.lists(st.lists(st.integers(4, 300), min_size=1, max_size=40), min_size=1, max_size=4)
modes: list[dict[str, Any]] = [
    {},
    {"draft_quantization": "none"},
    {"draft_window": 11},
    {"enable_prefix_caching": False},
    {"num_scheduler_steps": 3},
    {"mtp_modules": 1},
    {"block_size": 4, "num_blocks": 140},
]
ways: list[list[dict[str, Any]]] = [
    [{}],
    [{"temperature": 0.7}],
    [{}, {"temperature": 1.0}],
    [{"stop_token_ids": [2]}, {"temperature": 0.7, "stop_token_ids": [0, 1]}],
    [{}, {"max_tokens": 9}, {"max_tokens": 23, "temperature": 2.0}],
    [{"logprobs": 2, "max_tokens": 12}, {}],
    [{"presence_penalty": 0.5, "max_tokens": 12}, {}],
]


@settings(max_examples=40, deadline=None)
@given(
    prompts=prompts,
    mode=st.sampled_from(modes),
    how=st.sampled_from(ways),
    seed=st.integers(0, 2**62),
    choices=st.sampled_from([(0,), (1,), (0, 1), (0, 1, 2, 3), (2, 3), (0, 3), (5,), (0, 2, 4, 6)]),
    use=st.sampled_from([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
)
def test_a_step_of_rounds_leaves_what_steps_leave(
    loaded: Loaded,
    prompts: list[list[int]],
    mode: dict[str, Any],
    how: list[dict[str, Any]],
    seed: int,
    choices: tuple[int, ...],
    use: list[float],
) -> None:
    compare(loaded, replace(BASE, **mode), prompts, how, seed, choices, use)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("choices", [(0,), (1,), (3,), (0, 1, 2, 3), (0, 2, 5)], ids=str)
@pytest.mark.parametrize("how", [[{}], [{"temperature": 0.7}, {}]], ids=["greedy", "drawn"])
def test_the_comparison_compares(
    loaded: Loaded, choices: tuple[int, ...], how: list[dict[str, Any]], threads: int
) -> None:
    """There are steps of several rounds, some drafts are right, and modules that rest have something to wait for."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ahead, right, waited = compare(
            loaded, BASE, [list(range(10 + i, 24 + 5 * i)) for i in range(4)], how, 5, choices, [1.0, 0.0, 0.0]
        )
    finally:
        torch.set_num_threads(before)
    assert ahead > 10 and (right > 5 or not any(choices)) and waited > 20


def test_who_comes_is_not_kept_waiting(loaded: Loaded) -> None:
    """Rounds follow one another only while nobody could begin to read."""
    long = {"max_tokens": 100}
    engine, _ = engine_of(loaded, BASE, FixedWidth(0), [[5, 6, 7]], [long])
    engine.step()
    engine.step()
    before = engine.stats.steps
    assert before > 2, "the second step was many rounds"
    (newcomer,) = engine.add_request("later", [8, 9], SamplingParams(max_tokens=30, ignore_eos=True))
    engine.step()
    assert engine.stats.steps == before + 1 and newcomer.lag == 1


@pytest.mark.parametrize("width", [1, 3])
def test_rounds_go_on_until_somebody_is_near_its_end(loaded: Loaded, width: int) -> None:
    """All drafts may be right in each round, and mostly are not: how long one may go on shows while it does."""
    how = [{"max_tokens": 13}, {"max_tokens": 60}]
    engine, (first, second) = engine_of(loaded, BASE, FixedWidth(width), [[5, 6, 7], [8, 9]], how)
    steps = 0
    while engine.stats.steps == steps:  # a step by itself, as that of the prompts
        engine.step()
        steps += 1
    left = first.num_prompt + 13 - len(first.tokens)
    assert 0 <= left <= width
    assert len(second.tokens) > second.num_prompt + 1


def test_few_blocks_make_fewer_rounds(loaded: Loaded) -> None:
    """Who gets no further blocks has room for some rounds in those it has; then every step is by itself."""
    config, how = replace(BASE, num_blocks=17, enable_prefix_caching=False), [{"max_tokens": 100}]
    engine, requests = engine_of(loaded, config, FixedWidth(0), [[5, 6, 7], [8, 9]], how)
    engine.step()
    engine.step()
    assert 2 < engine.stats.steps < 1 + BASE.num_scheduler_steps
    assert all(len(request.tokens) <= len(request.blocks) * 8 for request in requests)


def test_rounds_of_a_step_take_no_longer_than_they_may(loaded: Loaded) -> None:
    pace, stats = _Pace(), EngineStats()
    for steps, seconds, most in ((1, 10.0, 0), (11, 10.004, 40), (12, 10.006, 8), (14, 10.1, 0)):
        stats.steps, stats.seconds["target"] = steps, seconds
        assert pace.rounds(stats) in (most - 1, most)
    assert pace.rounds(stats) == 1, "what nothing is known of is tried alone"
