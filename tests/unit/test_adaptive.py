"""Adaptive width: the best set of drafts by brute force, estimates that converge, a switch that turns both ways."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import log, prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_model import MockDrafter, make_engine, plain_text

from paceline import LLM, SamplingParams, UserError
from paceline.bench.policy_plot import draw_policy
from paceline.bench.policy_replay import SHAPES, Oracle, Replay, replay_all
from paceline.bench.traces import Trace, Traces
from paceline.engine.cost_cache import Learned, cached_table
from paceline.engine.measure import below, rising
from paceline.request import Request
from paceline.spec.adaptive import PATIENCE, AdaptiveWidth
from paceline.spec.allocate import Group, best_sets, weighted
from paceline.spec.cost import Costs, CostTable, along
from paceline.spec.survival import Survival, shifted
from paceline.spec.width import FixedWidth, StepFacts

MOST = 3


def table(row: float = 0.1, draft: float = 0.1, requests: int = 16) -> CostTable:
    """A pass of 1 s for one request, `row` more for each further row; `draft` for each depth, twice that for all."""
    sizes = [1, requests]
    extra = [0, MOST * requests]
    seconds = [[1 + row * (size - 1 + x) for x in extra] for size in sizes]
    return CostTable(sizes, [extra, extra], seconds, [], [[(1, draft), (requests, draft * 2)]] * MOST)


def requests_of(count: int, temperature: float = 0.0) -> list[Request]:
    params = SamplingParams(temperature=temperature)
    found = [Request(str(r), [1] * 9, 8, params, 0, cached=8) for r in range(count)]
    for row, request in enumerate(found):
        request.row = row
    return found


steps_up = st.lists(st.floats(0, 1), min_size=10, max_size=10)
staircase = steps_up.map(lambda steps: [1 + sum(steps[:i]) for i in range(10)])
each_alone = st.lists(st.floats(0.05, 1), min_size=1, max_size=3)
chains = each_alone.map(lambda p: [prod(p[: j + 1]) for j in range(len(p))])


@settings(max_examples=60, deadline=None)
@given(st.lists(chains, min_size=1, max_size=3), staircase, st.floats(0, 0.5))
def test_no_other_set_is_better(gains: list[list[float]], passes: list[float], each: float) -> None:
    """Whatever the staircase: against every width of every request."""
    drafts = [[each * n for n in range(4)]] * 3
    tokens, groups = float(len(gains)), [Group(chain, 1) for chain in gains]
    sets = best_sets(groups, passes, drafts, tokens)

    def value(widths: Sequence[int]) -> tuple[float, float]:
        counts = [sum(width > j for width in widths) for j in range(3)]
        expected = tokens + sum(sum(chain[:width]) for chain, width in zip(gains, widths, strict=True))
        return expected, passes[sum(widths)] + sum(drafts[j][n] for j, n in enumerate(counts))

    best = max(t / s for t, s in map(value, product(*(range(len(chain) + 1) for chain in gains))))
    chosen = max(range(len(sets.rows)), key=lambda i: sets.tokens[i] / sets.seconds[i])
    assert sets.tokens[chosen] / sets.seconds[chosen] == pytest.approx(best)
    widths = [sum(taken) for taken in sets.taken(chosen, groups)]
    assert value(widths) == pytest.approx((sets.tokens[chosen], sets.seconds[chosen]))
    assert sum(widths) == sets.rows[chosen]


def test_a_group_is_so_many_requests() -> None:
    passes = [1 + 0.05 * b for b in range(9)]
    drafts = [[0.0, 0.1, 0.1, 0.1, 0.1]] * 2
    together = best_sets([Group([0.8, 0.6], 4)], passes, drafts, 4.0)
    apart = best_sets([Group([0.8, 0.6], 1)] * 4, passes, drafts, 4.0)
    assert together.tokens == apart.tokens and together.seconds == apart.seconds
    assert together.taken(len(together.order), [Group([0.8, 0.6], 4)]) == [[4, 4]]


@given(chains, st.floats(0, 1))
def test_a_latency_weight_keeps_prefixes_in_order(chain: list[float], weight: float) -> None:
    gains = weighted(chain, weight)
    assert gains == sorted(gains, reverse=True) and all(a <= b for a, b in zip(gains, chain, strict=True))
    assert weighted(chain, 0) == chain


def test_estimates_come_to_the_true_rates() -> None:
    """Sure drafts are right nine times in ten, unsure ones four times."""
    survival, rng = Survival(2), random.Random(0)
    (request,) = requests_of(1)
    history = survival.history(request)
    for _ in range(6000):
        bins = [rng.choice([2, 10]) for _ in range(2)]
        agreed = 0
        while agreed < 2 and rng.random() < {2: 0.4, 10: 0.9}[bins[agreed]]:
            agreed += 1
        history.bins = bins
        survival.learn(history, 2, agreed)
    history.shift = 0.0
    for log_q, true in ((log(0.985), 0.9), (log(0.3), 0.4)):
        history.bins, history.made = [], []
        both = survival.next(history, log_q)
        assert history.made[0] == pytest.approx(true, abs=0.08) and both == pytest.approx(true * 0.65, abs=0.08)
    first, both = survival.chain(history.kind, 0, 2)
    assert first == pytest.approx(0.65, abs=0.06) and both == pytest.approx(0.65**2, abs=0.08)


def test_a_request_that_does_better_than_others_is_told_apart() -> None:
    survival = Survival(1)
    good, bad = (survival.history(request) for request in requests_of(2))
    for _ in range(60):
        survival.learn(good, 1, 1)
        survival.learn(bad, 1, 0)
    assert good.level > 0 > bad.level
    for _ in range(200):
        survival.learn(bad, 0, 0)
    assert bad.level == 0, "what is not drafted for is forgiven"
    assert shifted(0.5, 1.0) == 0.5


def step(policy: AdaptiveWidth, ready: list[Request], costs: Costs, right: int) -> list[int]:
    """One step of a machine that costs what `costs` says, where `right` drafts of each request are right."""
    widths = policy.widths(ready)
    drafting = [costs.drafts(depth, len(ready))[sum(w > depth for w in widths)] for depth in range(max(widths))]
    seconds = costs.passes(len(ready), sum(widths), 0, 0)[0]
    policy.learn(StepFacts(widths, [min(width, right) for width in widths], 0, seconds, drafting))
    return widths


def test_it_drafts_from_the_first_step_on() -> None:
    assert AdaptiveWidth(table(), MOST).widths(requests_of(1)) == [MOST]


def test_it_turns_off_under_load_and_on_again() -> None:
    costs = replace(table(draft=0.05), seconds=[[1.0, 1.5], [10.0, 80.0]])
    policy, machine = AdaptiveWidth(costs, MOST), Costs(costs)
    for count, drafting in ((1, True), (16, False), (1, True)):
        ready = requests_of(count)
        drafted = [any(step(policy, ready, machine, right=MOST)) for _ in range(100 + PATIENCE)][PATIENCE:]
        assert drafted.count(drafting) > 90, "but for trials"


def test_a_step_with_fewer_requests_changes_no_decision() -> None:
    costs = table(row=0.9, draft=0.05)
    policy = AdaptiveWidth(replace(costs, seconds=[[1.0, 1.5], costs.seconds[1]]), MOST)
    policy.widths(requests_of(1))
    for _ in range(2):
        assert all(all(policy.widths(requests_of(16))) for _ in range(4)), "they may be back at once"
        assert all(policy.widths(requests_of(1)))
    assert policy.decisions.switches == 0


def test_bad_text_turns_it_off_and_good_text_on_again() -> None:
    costs, ready = table(row=0.15, draft=0.15), requests_of(4)
    policy = AdaptiveWidth(costs, MOST)
    machine = Costs(costs)
    for _ in range(300):
        step(policy, ready, machine, right=0)
    before = policy.decisions.steps_on
    for _ in range(300):
        step(policy, ready, machine, right=0)
    assert policy.decisions.steps_on - before < 30, "but for trials"
    for _ in range(6000):
        last = step(policy, ready, machine, right=3)
    assert all(last), "never off for good"


def test_a_requests_own_number_is_what_it_gets() -> None:
    ready = requests_of(3)
    ready[0].num_speculative_tokens, ready[1].num_speculative_tokens = 0, 2
    policy = AdaptiveWidth(table(row=5.0), MOST)
    assert policy.widths(ready)[:2] == [0, 2]
    assert not policy.asks


def test_unsure_drafts_end_a_chain_and_sure_ones_do_not() -> None:
    ready = requests_of(2)
    policy = AdaptiveWidth(table(row=0.12, draft=0.12), MOST)
    assert min(policy.widths(ready)) > 1 and policy.asks
    sure, unsure = log(0.999), log(1e-9)
    for _ in range(200):
        widths = policy.widths(ready)
        if policy.asks:
            policy.deeper(1, ready, [unsure, sure])
            widths = [1, 1]
        policy.learn(StepFacts(widths, [0, min(widths[1], 1)], 0, 1 + 0.12 * sum(widths), [0.16]))
    while min(policy.widths(ready)) < 1 or not policy.asks:
        policy.learn(StepFacts([0, 0], [0, 0], 0, 1.12, []))
    assert policy.deeper(1, ready, [unsure, sure]) == [False, True]
    assert policy.cut(ready, [1, 1]) == [0, 1], "nor is it worth a row"


def test_nobody_is_asked_where_all_drafts_are_one_call() -> None:
    """Asked in between, each depth would be a call of its own: what questions bring is less than that."""
    ready = requests_of(2)
    costs = table(row=0.12, draft=0.12)
    for at_once in (True, False):
        policy = AdaptiveWidth(replace(costs, at_once=at_once), MOST)
        assert min(policy.widths(ready)) > 1 and policy.asks is not at_once


def test_own_numbers_are_not_asked_about() -> None:
    ready = requests_of(3)
    ready[0].num_speculative_tokens, ready[1].num_speculative_tokens = 0, 2
    policy = AdaptiveWidth(table(row=0.05, draft=0.05), MOST)
    assert policy.widths(ready)[:2] == [0, 2] and policy.asks
    assert policy.deeper(1, [ready[1]], [-9.0]) == [True] and policy.deeper(2, [ready[1]], [-9.0]) == [False]
    assert policy.cut(ready, [0, 2, 0]) == [0, 2, 0]


def test_the_same_measurements_lead_to_the_same_decisions() -> None:
    def run() -> list[list[int]]:
        policy, ready, machine = AdaptiveWidth(table(), MOST), requests_of(5), Costs(table(row=0.3))
        return [step(policy, ready, machine, right=number % 4) for number in range(200)]

    assert run() == run()


def test_steps_that_are_exceptions_tell_nothing_however_long_they_took() -> None:
    """Left out by what they took, only the slow ones would tell: the way would be believed slow."""

    def believed(alone: float) -> list[float]:
        policy, ready = AdaptiveWidth(table(), MOST), requests_of(1)
        for _ in range(40):
            widths = policy.widths(ready)
            policy.learn(StepFacts(widths, widths, 0, 2.0 + sum(widths), [0.0] * sum(widths), alone=alone))
        return [x for errors in policy.referee.known().values() for x in errors["mean"]]

    assert any(believed(0.0)) and not any(believed(1.99))  # s: what each should take is 1 to 1.7


def test_more_work_is_never_measured_as_quicker() -> None:
    assert rising([(1, 1.0), (2, 5.0), (3, 3.0), (4, 4.0)]) == [(1, 1.0), (2, 3.0), (3, 3.0), (4, 4.0)]
    assert below([(0, 4.0), (6, 5.5), (99, 9.0)], [(0, 3.0), (8, 7.0)], 2) == [(0, 3.0), (6, 5.0), (99, 9.0)]


def test_context_beyond_the_caches_goes_on_as_it_was_last() -> None:
    points = [(10, 1.0), (20, 3.0)]
    assert [along(points, x) for x in (0, 5, 10, 15, 30)] == [0.0, 0.5, 1.0, 2.0, 5.0] and along([], 7) == 0.0


def test_context_is_read_by_every_row() -> None:
    costs = Costs(replace(table(), contexts=[(1000, 1.0)], per_row_context=0.0005))
    assert costs.passes(2, 0, 100, 0)[0] == pytest.approx(1.1 + 0.1)
    assert costs.passes(2, 1, 100, 1) == pytest.approx([1.2 + 0.125, 1.3 + 0.15])
    assert costs.step(2, 1, 100, [2, 1]) == pytest.approx(1.325 + sum(costs.drafts(0, 2)[1:]))


@pytest.mark.parametrize(
    "change",
    [
        {"requests": []},
        {"seconds": [[1.0]]},
        {"extra": "x"},
        {"contexts": [[1, -1]]},
        {"contexts": [[0, 1]]},
        {"contexts": [[1, 2], [2, 1]]},
        {"drafting": [[]]},
        {"requests": [2, 1]},
    ],
)
def test_a_damaged_table_is_refused(change: dict[str, object]) -> None:
    assert CostTable.from_dict(table().as_dict()) == table()
    with pytest.raises(UserError, match="measure it again"):
        CostTable.from_dict(table().as_dict() | change)


def test_a_table_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []

    def measure() -> CostTable:
        calls.append(1)
        return table()

    assert cached_table({"model": 1}, measure) == cached_table({"model": 1}, measure) and len(calls) == 1
    (file,) = (tmp_path / "paceline").iterdir()
    file.write_text("{")
    assert cached_table({"model": 1}, measure) == table() and len(calls) == 2
    cached_table({"model": 2}, measure)
    assert len(calls) == 3


def test_what_was_learned_is_there_again_for_the_same_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    learned = Learned({"model": 1})
    assert learned.read() == {}
    learned.write({"8": {"mean": [0.5]}})
    assert Learned({"model": 1}).read() == {"8": {"mean": [0.5]}} and Learned({"model": 2}).read() == {}
    for damage in ("{", "[1]", ""):
        next((tmp_path / "paceline").iterdir()).write_text(damage)
        assert learned.read() == {}


def test_an_engine_keeps_what_its_policy_learned(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("paceline.engine.timed.KEEP_SECONDS", 0.0)
    params = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)
    first = LLM(tiny_model, max_num_seqs=2, max_model_len=128)
    first.generate(["one", "two"], params)
    known = AdaptiveWidth.known(first.engine.policy.policy)  # type: ignore[arg-type]
    (file,) = (tmp_path / "paceline").glob("learned-*.json")
    assert known and known.keys() == json.loads(file.read_text()).keys()
    second = first.with_options()
    assert AdaptiveWidth.known(second.engine.policy.policy).keys() == known.keys()  # type: ignore[arg-type]


def traces(right: list[int], places: int = 200) -> Traces:
    """Answers whose drafts are right as `right` says in turn; what is right was sure."""
    accepted = [right[i % len(right)] for i in range(places)]
    confidences = [[-0.001] * count + [-3.0] * (MOST - count) for count in accepted]
    return Traces(MOST, table(), [Trace(4, False, accepted, confidences)] * 4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("right", [[3], [0], [1]])
def test_replays_come_near_the_best_and_never_beat_the_oracle(shape: str, right: list[int]) -> None:
    recorded = traces(right)

    def rate(policy: AdaptiveWidth | FixedWidth | Oracle) -> float:
        return Replay(recorded, policy, 6, SHAPES[shape], 2000).run()

    auto = rate(AdaptiveWidth(recorded.costs, MOST))
    fixed = max(rate(FixedWidth(k)) for k in range(MOST + 1))
    oracle = rate(Oracle(Costs(recorded.costs), MOST))
    assert auto >= 0.97 * fixed and oracle >= 0.999 * fixed and oracle >= 0.999 * auto


def test_replays_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = replay_all(traces([2, 0]), [1, 4], 200)
    for name in ("policy.svg", "policy.png"):
        draw_policy(rows, tmp_path / name)
    assert ">auto<" in (tmp_path / "policy.svg").read_text()
    with pytest.raises(UserError, match="ends in"):
        draw_policy(rows, tmp_path / "policy.pdf")


def test_a_step_of_the_staircase_behind_the_best_width_does_no_harm() -> None:
    """A third draft would cost much, so that there is none; the two before it are worth their rows all the same."""
    cliff = replace(
        table(draft=0.01), extra=[[0, 1, 2, 3], [0, 16, 32, 48]], seconds=[[1, 1.1, 1.2, 5], [2, 2.2, 2.4, 9]]
    )
    recorded = replace(traces([2, 1]), costs=cliff)
    rates = [
        Replay(recorded, policy, 6, SHAPES["steady"], 3000).run()
        for policy in (AdaptiveWidth(cliff, MOST), FixedWidth(2))
    ]
    assert rates[0] >= 0.97 * rates[1]


def test_recordings_survive_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "traces.json"
    traces([1, 2]).save(file)
    assert Traces.load(file) == traces([1, 2])
    file.write_text(file.read_text().replace('"most": 3', '"most": 1', 1))
    with pytest.raises(UserError, match="damaged"):
        Traces.load(file)
    file.write_text("[]")
    with pytest.raises(UserError, match="no recording"):
        Traces.load(file)


@pytest.mark.parametrize("trees", [False, True])
def test_the_engines_text_is_the_plain_text(trees: bool) -> None:
    engine = make_engine(MockDrafter(random.Random(0), 0.7, trees, True), k=MOST, max_num_seqs=4)
    engine.policy.policy = AdaptiveWidth(table(requests=4), MOST)
    requests = [
        engine.add_request(str(r), [1 + r % 6, 2, 3], SamplingParams(max_tokens=30, ignore_eos=True))[0]
        for r in range(9)
    ]
    while engine.has_unfinished:
        engine.step()
    for request in requests:
        assert request.generated == plain_text(request.tokens[:3], request.params, 48)[0]
    assert engine.policy.seconds > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_auto_says_what_plain_decoding_says(tiny_model: Path, temperature: float) -> None:
    params = SamplingParams(max_tokens=24, temperature=temperature, seed=1, ignore_eos=True)
    prompts = ["one two", "the quick brown", "how many words", "list", "jumps over"]
    llm = LLM(tiny_model, max_num_seqs=3)
    assert llm.num_speculative_tokens == "auto" and llm.engine.stats.steps == 0
    policy = llm.engine.policy.policy
    assert isinstance(policy, AdaptiveWidth)
    policy.costs = Costs(table(row=0.0, draft=0.0001, requests=3))  # so that it drafts, whatever this machine says
    found = llm.generate(prompts, params)
    plain = llm.with_options(drafter="none")
    assert plain.num_speculative_tokens == 0
    assert [r.outputs[0].token_ids for r in found] == [r.outputs[0].token_ids for r in plain.generate(prompts, params)]
    assert llm.engine.stats.speculation.drafted > 0


def test_the_smallest_context_has_an_engine_too(tiny_model: Path) -> None:
    """There is no room to measure a step in."""
    answer = LLM(tiny_model, max_model_len=7).generate([5, 6], SamplingParams(max_tokens=3, ignore_eos=True))
    assert len(answer[0].outputs[0].token_ids) == 3
