"""Sampling against distributions enumerated in float64, and against being asked in other company."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import UserError
from paceline.kernels import best_of, best_token
from paceline.request import Request, SamplingParams
from paceline.sampling import Sampler, check_token_ids, cut, top_logprobs

EOS = 3
PROMPT, SAID = [1, 2, 2, 9], [5, 5, 7]


def make_request(seed: int = 0, **params: Any) -> Request:
    return Request("r", PROMPT + SAID, len(PROMPT), SamplingParams(**params), seed)


def enumerate_probs(logits: list[float], params: SamplingParams, path: list[int]) -> list[float]:
    """The distribution of the next token by the definitions, one token at a time, in float64."""
    generated = SAID + path
    scores = list(logits)
    for token in range(len(scores)):
        if len(generated) < params.min_tokens and token in (EOS, *params.stop_token_ids):
            scores[token] = -math.inf
        scores[token] += (params.logit_bias or {}).get(token, 0.0)
        if token in PROMPT + generated:
            r = params.repetition_penalty
            scores[token] = scores[token] / r if scores[token] > 0 else scores[token] * r
        scores[token] -= params.frequency_penalty * generated.count(token)
        scores[token] -= params.presence_penalty * (token in generated)
        scores[token] /= params.temperature
    scores = [s if s >= max(scores) + math.log(params.min_p or 1e-300) else -math.inf for s in scores]
    if params.top_k > 0:
        floor = sorted(scores, reverse=True)[min(params.top_k, len(scores)) - 1]
        scores = [s if s >= floor else -math.inf for s in scores]
    weights = [math.exp(s - max(scores)) for s in scores]
    probs = [w / sum(weights) for w in weights]
    nucleus: set[int] = set()
    for token in sorted(range(len(probs)), key=lambda t: (-probs[t], t)):
        if params.top_p < 1 and sum(probs[t] for t in nucleus) >= params.top_p:
            break
        nucleus.add(token)
    kept = [p if token in nucleus else 0.0 for token, p in enumerate(probs)]
    return [p / sum(kept) for p in kept]


def assert_follows(tokens: torch.Tensor, probs: list[float]) -> None:
    """Chi-square at about p = 1e-4; tokens of no probability must not occur at all."""
    counts = torch.bincount(tokens, minlength=len(probs)).tolist()
    assert all(count == 0 for count, p in zip(counts, probs, strict=True) if p == 0)
    expected = [p * len(tokens) for p in probs]
    assert min(e for e in expected if e > 0) > 5, "too few samples for a chi-square"
    chi2 = sum((count - e) ** 2 / e for count, e in zip(counts, expected, strict=True) if e > 0)
    df = max(sum(p > 0 for p in probs) - 1, 1)
    assert chi2 < df + 4 * math.sqrt(2 * df) + 8


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 4},
    {"temperature": 0.8, "top_p": 0.7},
    {"temperature": 0.8, "top_p": 0.999},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 1.0, "top_k": 6, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"temperature": 0.9, "repetition_penalty": 1.5, "top_p": 0.9},
    {"temperature": 1.0, "frequency_penalty": -0.3, "logit_bias": {0: 2.0, 5: -1.5}},
    {"temperature": 1.0, "min_tokens": 6, "stop_token_ids": (8,)},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("path", [[], [5, 0]], ids=["root", "after two drafts"])
def test_chosen_tokens_follow_the_enumerated_distribution(case: dict[str, Any], path: list[int]) -> None:
    torch.manual_seed(1)
    logits = torch.randn(12)
    runs = 4000
    requests = [make_request(seed, **case) for seed in range(runs)]
    chosen = Sampler((EOS,)).choose(logits.expand(runs, -1), requests, [path] * runs)
    assert_follows(chosen, enumerate_probs(logits.tolist(), requests[0].params, path))


def test_positions_of_one_seed_are_independent_samples() -> None:
    """One request, the same logits at 20 000 places: choices follow p, and pairs of neighbours follow p x p."""
    torch.manual_seed(2)
    logits, runs = torch.randn(5), 20_000
    request = make_request(seed=77, temperature=1.0)
    paths: list[list[int]] = [[0] * depth for depth in range(64)]
    parts = []
    for start in range(0, runs, 64):
        request.tokens = [0] * (start + 1)
        parts.append(Sampler().choose(logits.expand(64, -1), [request] * 64, paths))
    chosen = torch.cat(parts)
    probs = logits.double().softmax(-1)
    assert_follows(chosen, probs.tolist())
    assert_follows(chosen[:-1] * 5 + chosen[1:], torch.outer(probs, probs).flatten().tolist())


params_of_rows = st.lists(
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.6, 1.0]),
        top_k=st.sampled_from([0, 1, 5, 400]),
        top_p=st.sampled_from([1.0, 0.9, 0.2]),
        min_p=st.sampled_from([0.0, 0.05]),
        presence_penalty=st.sampled_from([0.0, 0.7]),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
        min_tokens=st.sampled_from([0, 5]),
        logit_bias=st.sampled_from([None, {2: 1.0}]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=params_of_rows, vocab_size=st.sampled_from([11, 64, 300, 1001]), flat=st.booleans(), seed=st.integers(0, 99)
)
def test_a_choice_does_not_depend_on_the_other_rows(
    rows: list[SamplingParams], vocab_size: int, flat: bool, seed: int
) -> None:
    """`flat`: logits of few values, so that ties and wide nuclei occur."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2 * len(rows), vocab_size, generator=generator).mul(1 if flat else 4)
    logits = (logits.round() if flat else logits).bfloat16()
    requests = [Request("r", PROMPT + SAID, len(PROMPT), params, seed + i) for i, params in enumerate(rows)]
    owners = [request for request in requests for _ in range(2)]
    paths = [[], [4]] * len(rows)
    together = Sampler((EOS,)).choose(logits, owners, paths).tolist()
    alone = [
        Sampler((EOS,)).choose(logits[i : i + 1], owners[i : i + 1], paths[i : i + 1]).item()
        for i in range(len(owners))
    ]
    assert together == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_greedy_takes_the_lowest_of_equal_tokens(dtype: torch.dtype, rows: int) -> None:
    for vocab_size in (7, 64, 4099):
        logits = torch.randint(-3, 3, (rows, vocab_size), generator=torch.Generator().manual_seed(rows)).to(dtype)
        expected = [row.index(max(row)) for row in logits.tolist()]
        with torch.inference_mode():  # where compiled code may serve
            assert best_token(logits).tolist() == best_of(logits)[0].tolist() == expected
        assert best_token(logits).tolist() == expected
        requests = [make_request() for _ in range(rows)]
        assert Sampler().choose(logits, requests, [[]] * rows).tolist() == expected
        requests[0] = make_request(temperature=1.0)  # a neighbour that samples sends every row down the general way
        assert Sampler().choose(logits, requests, [[]] * rows).tolist()[1:] == expected[1:]


def test_ties_at_the_edges_of_cuts() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert kept(scores, top_k=2) == [1, 2, 3, 4]  # all that equal the second
    probs = torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.2]])
    assert kept(probs.log(), top_p=0.6) == [1, 2, 3]  # the lowest ids of the equal ones, as many as are needed
    assert kept(probs.log(), top_p=0.05) == [1]
    assert kept(torch.zeros(1, 8), top_p=0.5) == [0, 1, 2, 3]  # reached exactly
    assert kept(torch.zeros(1, 1000), top_p=0.5) == list(range(500))  # a nucleus too wide for the short way


def kept(scores: torch.Tensor, **params: Any) -> list[int]:
    return cut(scores.clone(), [SamplingParams(**params)])[0].isfinite().nonzero().flatten().tolist()


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-12, 12), min_size=2, max_size=700),
    top_p=st.sampled_from([0.03, 0.5, 0.77, 0.95, 0.9999]),
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits: list[int], top_p: float) -> None:
    scores = torch.tensor([logits], dtype=torch.float32) / 3
    probs = scores.softmax(-1)[0].double()
    nucleus = kept(scores, top_p=top_p)
    ranked = sorted(range(len(logits)), key=lambda t: (-probs[t].item(), t))
    assert nucleus == sorted(ranked[: len(nucleus)])
    mass = probs[ranked].cumsum(0)
    assert mass[len(nucleus) - 1] >= min(top_p, mass[-1].item()) - 1e-9
    assert len(nucleus) == 1 or mass[len(nucleus) - 2] < top_p + 1e-9


def test_penalties_grow_with_the_request_and_forget_drafts() -> None:
    """The counts kept from step to step equal those of a request seen for the first time."""
    torch.manual_seed(3)
    sampler, growing = Sampler(), make_request(presence_penalty=0.5, frequency_penalty=0.9, repetition_penalty=1.3)
    for _ in range(40):
        logits = torch.randn(3, 12)
        paths = [[], [5], [5, 11]]
        fresh = Request("new", list(growing.tokens), len(PROMPT), growing.params, 0)
        got = sampler.choose(logits, [growing] * 3, paths)
        assert torch.equal(got, Sampler().choose(logits, [fresh] * 3, paths))
        growing.tokens.extend(got[:2].tolist())


def test_greedy_with_penalties_is_the_argmax_of_the_penalised_scores() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.5, 0.0, 0.0, 5.0, 0.0, 4.5, 0.0, 4.0, 0.0, 3.9]])
    request = make_request(presence_penalty=1.2)
    assert Sampler().choose(logits, [request], [[]]).item() == 9  # 5 and 7 were generated; 9 is only in the prompt
    assert Sampler().choose(logits, [request], [[9]]).item() == 11  # now 9 is on the path
    assert Sampler().choose(logits, [make_request(frequency_penalty=0.3)], [[]]).item() == 5


def test_min_tokens_forbids_the_end_only_until_it_is_reached() -> None:
    logits = torch.zeros(1, 12)
    logits[0, EOS], logits[0, 8], logits[0, 4] = 9, 8, 1
    request = make_request(min_tokens=5, stop_token_ids=(8,))
    sampler = Sampler((EOS,))
    assert [sampler.choose(logits, [request], [path]).item() for path in ([], [0], [0, 0])] == [4, 4, EOS]
    ignoring = make_request(min_tokens=5, ignore_eos=True)
    assert sampler.choose(logits, [ignoring], [[]]).item() == EOS  # it ends nothing, so nothing forbids it


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(2, 12)
    before = logits.clone()
    requests = [make_request(temperature=1.0, top_p=0.5, logit_bias={1: 5.0}), make_request(presence_penalty=2.0)]
    Sampler().choose(logits, requests, [[], []])
    assert torch.equal(logits, before)


def test_logprobs_are_the_models_own() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    (got,) = top_logprobs(logits, [3], 2)
    expected = logits.double().log_softmax(-1)[0]
    assert list(got) == [3, 1, 2]
    assert got == pytest.approx({t: expected[t].item() for t in (3, 1, 2)}, abs=1e-6)
    assert list(top_logprobs(logits, [1], 2)[0]) == [1, 2]  # the chosen one counts among the best
    assert list(top_logprobs(logits, [0], 0)[0]) == [0]


def test_coupled_draft_agrees_as_often_as_promised() -> None:
    """Two distributions, the same noise: P(same token) >= (1 - TV) / (1 + TV), far above independent draws."""
    torch.manual_seed(4)
    runs = 4000
    requests = [make_request(seed, temperature=1.0) for seed in range(runs)]
    for spread in (0.3, 1.0, 2.0):
        target, draft = torch.randn(50), torch.randn(50).mul(spread)
        draft += target
        p, q = target.double().softmax(-1), draft.double().softmax(-1)
        tv = (p - q).abs().sum().item() / 2
        drawn = [Sampler().choose(x.expand(runs, -1), requests, [[]] * runs) for x in (target, draft)]
        agreement = (drawn[0] == drawn[1]).double().mean().item()
        error = 4 * math.sqrt(0.25 / runs)
        assert (1 - tv) / (1 + tv) - error <= agreement <= 1 - tv + error
        assert agreement > (p * q).sum().item() + 0.05


def test_token_ids_out_of_range_are_refused() -> None:
    check_token_ids(SamplingParams(logit_bias={11: 1.0}, stop_token_ids=(0,)), 12)
    with pytest.raises(UserError, match="logit_bias names token 12"):
        check_token_ids(SamplingParams(logit_bias={12: 1.0}), 12)
    with pytest.raises(UserError, match="stop_token_ids names token -1"):
        check_token_ids(SamplingParams(stop_token_ids=(-1,)), 12)


def test_parameters_come_in_every_spelling() -> None:
    """One stop string is not its letters; lists and keys of JSON do as well."""
    params = SamplingParams(stop="END", stop_token_ids=[3], logit_bias={"5": 1})  # type: ignore[dict-item]
    assert params == SamplingParams(stop=("END",), stop_token_ids=(3,), logit_bias={5: 1.0})
    request = Request("a", [1], 1, SamplingParams(min_tokens=2, stop_token_ids=[1]), 0)
    assert Sampler().choose(torch.tensor([[0.0, 2.0, 1.0]]), [request], [[]]).tolist() == [2]


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"repetition_penalty": math.inf},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: math.inf}},
    ],
    ids=str,
)
def test_numbers_that_make_every_score_meaningless_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        SamplingParams(**bad)
