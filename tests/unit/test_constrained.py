"""Choosing freely first gives what every mask at once would give: over forms, logits with ties, temperatures, cuts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from grammar_tools import EOS, FORMS, VOCAB, counted, grammars, tokenizer, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline import SamplingParams, StructuredOutputsParams
from paceline.grammar import Grammar, forbidden
from paceline.kernels import native
from paceline.request import Request
from paceline.sampling import Sampler
from paceline.spec.constrained import choose, choose_and_rate
from paceline.spec.proposal import Proposal
from paceline.spec.verify import verify


class EveryMask(Grammar):
    """The oracle: masks as the library computes them, each by a matcher that has read nothing else."""

    def __init__(self, asked: StructuredOutputsParams) -> None:
        self.asked = asked

    def mask(self, path: Sequence[int]) -> bytes:
        matcher = grammars().compiled(self.asked).deep_copy()
        inside = matcher.try_consume_tokens(list(path)) == len(path)
        return matcher.compute_bitmask()[: VOCAB // 8] if inside else b"\xff" * (VOCAB // 8)


def a_request(asked: StructuredOutputsParams | None, params: dict[str, Any], seed: int, eager: bool) -> Request:
    given = SamplingParams(structured_outputs=asked, **params)
    grammar = None if asked is None else EveryMask(asked) if eager else grammars().start(asked)
    return Request(str(seed), [7], 1, given, seed, grammar=grammar)


PARAMS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 1e-6, 0.7, 1.0, 30.0])},
    optional={
        "top_k": st.sampled_from([1, 3]),
        "top_p": st.sampled_from([0.2, 0.9]),
        "min_p": st.just(0.1),
        "frequency_penalty": st.just(1.5),
        "min_tokens": st.just(3),
        "logit_bias": st.just({token: -1e38 for token in range(0, VOCAB, 2)}),
    },
)
PLAIN: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({"temperature": st.sampled_from([0.0, 0.7, 30.0])})
FORM = st.sampled_from([asked for asked, _ in FORMS])


def some_logits(data: st.DataObject, requests: Sequence[Request], paths: Sequence[list[int]]) -> Tensor:
    """Of few levels, so that many are equal; what is allowed is often better than the rest, so that it is often chosen.
    EOS is wanted often."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    levels = data.draw(st.sampled_from([2, 9, 200]))
    made = torch.randint(0, levels, (len(paths), VOCAB), generator=generator).bfloat16()
    made[::2, EOS] = levels - 1
    for row, (request, path) in enumerate(zip(requests, paths, strict=True)):
        if request.grammar is not None:
            bad = torch.from_numpy(forbidden([request.grammar.mask(path)], VOCAB)[0])
            made[row, ~bad] += data.draw(st.sampled_from([0, 2, 8, levels]))
    return made


def a_walk(data: st.DataObject, asked: StructuredOutputsParams | None) -> list[int]:
    steps = data.draw(st.lists(st.integers(0, 99), max_size=6))
    return [9] * len(steps) if asked is None else walk(grammars().start(asked), steps)


@pytest.mark.skipif(native.library() is None, reason="no compiled kernels here")
@given(st.integers(1, 3), st.integers(1, 200), st.integers(0, 99))
def test_what_masks_leave_of_logits(rows: int, size: int, seed: int) -> None:
    """Against numpy's bits; with masks of whole words of 32."""
    generator = np.random.default_rng(seed)
    masks = [generator.bytes(-(-size // 32) * 4) for _ in range(rows)]
    logits = torch.from_numpy(generator.normal(size=(rows, size)).astype(np.float32)).bfloat16()
    logits[:, :: seed + 1] = -torch.inf
    expected = logits.clamp(min=-1e30).masked_fill(torch.from_numpy(forbidden(masks, size)), -torch.inf)
    assert native.only_allowed(logits, masks, -1e30).equal(expected)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_the_choice_is_that_of_every_mask_at_once(data: st.DataObject) -> None:
    """Rows of several requests, in any order of the places along a path, and again when all was seen before."""
    lazy, eager, paths = [], [], []
    for seed in range(data.draw(st.integers(1, 4))):
        asked, params = data.draw(st.none() | FORM), data.draw(PLAIN | PARAMS)
        one, other = (a_request(asked, params, seed, eager=mode) for mode in (False, True))
        path = a_walk(data, asked)
        for end in data.draw(st.lists(st.integers(0, len(path)), min_size=1, max_size=4)):
            lazy.append(one)
            eager.append(other)
            paths.append(path[:end])
    logits = some_logits(data, eager, paths)
    expected = Sampler([EOS]).choose(logits, eager, paths).tolist()
    for compiled in (data.draw(st.booleans()), True):
        with torch.inference_mode(compiled):
            found = choose(Sampler([EOS]), logits, lazy, paths)
            tokens, rates = choose_and_rate(Sampler([EOS]), logits, lazy, paths)
        assert found == tokens == expected and all(rate <= 1e-5 for rate in rates)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_draft_is_verified_as_if_every_mask_were_there(data: st.DataObject) -> None:
    """Token by token down the draft, refused drafts among them; and the next mask, from what came of it."""
    asked, params, seed = data.draw(FORM), data.draw(PLAIN | PARAMS), data.draw(st.integers(0, 9))
    lazy, eager = (a_request(asked, params, seed, eager=mode) for mode in (False, True))
    sampler, path = Sampler([EOS]), a_walk(data, asked)
    if data.draw(st.booleans()):
        path = [*path, data.draw(st.integers(4, VOCAB - 1))]
    nodes = [path[:node] for node in range(len(path) + 1)]
    logits = some_logits(data, [eager] * len(nodes), nodes)
    for node, token in enumerate(path):
        logits[node, token] += data.draw(st.sampled_from([0, 300]))
    expected: list[int] = []
    while expected == path[: len(expected)] and len(expected) < len(nodes):
        node = len(expected)
        expected += sampler.choose(logits[node : node + 1], [eager], [nodes[node]]).tolist()
    with torch.inference_mode(data.draw(st.booleans())):
        assert verify(Proposal([[7, *path]]), logits, [lazy], sampler).emitted == [expected]
    assert lazy.grammar is not None
    for token in expected:
        lazy.grammar.commit(token)
    mine = EveryMask(asked).mask(expected) if EOS not in expected and not lazy.grammar._matcher.is_stopped() else None
    assert mine is None or lazy.grammar.mask([]) == mine


def test_a_tree_is_verified_too() -> None:
    asked = StructuredOutputsParams(choice=["xz", "zx"])
    request = a_request(asked, {}, 0, eager=False)
    x, z = (tokenizer().encode(text)[0] for text in "xz")
    proposal = Proposal([[7, x, z, x]], [[-1, 0, 0, 2]])
    logits = torch.zeros(4, VOCAB)
    logits[0, z], logits[0, 5], logits[2, z], logits[3, 5] = 5.0, 9.0, 5.0, 5.0
    verdict = verify(proposal, logits, [request], Sampler([EOS]))
    assert verdict.paths == [[0, 2, 3]] and verdict.emitted[0][:2] == [z, x]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_mask_is_taken_only_where_the_free_choice_is_refused(temperature: float) -> None:
    request = a_request(StructuredOutputsParams(regex="[x-z]{9}"), {"temperature": temperature}, 3, eager=False)
    grammar = request.grammar
    assert grammar is not None
    x, a = (tokenizer().encode(text)[0] for text in "xa")
    calls = counted(grammar)
    logits = torch.zeros(1, VOCAB)
    logits[0, x] = 99.0
    assert choose(Sampler(), logits, [request], [[]]) == [x] and not calls["compute_bitmask"]
    logits[0, a] = 999.0
    assert choose(Sampler(), logits, [request], [[x]]) == [x] and calls["compute_bitmask"] == 1


def test_a_forced_token_is_chosen_by_nobody_and_certain() -> None:
    request = a_request(StructuredOutputsParams(regex="one two three four"), {"temperature": 0.9}, 3, eager=False)
    assert request.grammar is not None
    forced = request.grammar.forced([], 99)
    assert len(forced) > 2
    nothing = torch.full((2, VOCAB), float("nan"))
    assert choose_and_rate(Sampler(), nothing, [request] * 2, [[], forced[:1]]) == (forced[:2], [0.0, 0.0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.3},
        {"repetition_penalty": 2.0},
        {"logit_bias": {token: -1e31 * (1 + token % 7) for token in range(VOCAB)}},
    ],
    ids=lambda params: "".join(params) or "plain",
)
def test_what_depends_on_all_that_is_allowed_sees_the_mask(params: dict[str, Any], compiled: bool) -> None:
    """Where many free choices are allowed ones, and cuts keep other tokens with the mask than without."""
    asked, temperature = StructuredOutputsParams(regex="[a-z ]{1,9}"), 1.0
    bad = torch.from_numpy(forbidden([EveryMask(asked).mask([])], VOCAB)[0])
    made = torch.randn(200, VOCAB, generator=torch.Generator().manual_seed(1)) + 1.5 * ~bad
    made = made.bfloat16()
    allowed = 0
    for seed, logits in enumerate(made.split(1)):
        lazy, eager = (
            a_request(asked, {"temperature": temperature} | params, seed, eager=mode) for mode in (False, True)
        )
        free = a_request(None, {"temperature": temperature} | params, seed, eager=False)
        expected = Sampler().choose(logits, [eager], [[]]).tolist()
        with torch.inference_mode(compiled):
            assert choose(Sampler(), logits, [lazy], [[]]) == expected
        allowed += not bool(bad[choose(Sampler(), logits, [free], [[]])[0]])
    assert allowed > 20 or "logit_bias" in params
