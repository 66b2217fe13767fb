"""Verification: what is emitted is plain decoding, whatever was drafted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.request import Request, SamplingParams
from paceline.sampling import Sampler
from paceline.spec.proposal import Proposal, Verdict
from paceline.spec.verify import verify

VOCAB, EOS, LENGTH = 13, 0, 24
Draft = Callable[[list[int]], tuple[list[int], list[int]]]  # tokens so far -> drafted tokens, their parents


class Markov:
    """A target whose logits depend on the last two tokens. Values are coarse, as in bf16, so that ties happen."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(VOCAB, VOCAB, VOCAB, generator=generator).mul(2).round().div(2).bfloat16()

    def logits(self, tokens: list[int]) -> Tensor:
        return self.table[tokens[-2], tokens[-1]]


def step(model: Markov, requests: list[Request], drafts: list[tuple[list[int], list[int]]]) -> Verdict:
    """One verification of trees: each draft is (tokens, parents) of the nodes after the root."""
    rows = []
    for request, (drafted, above) in zip(requests, drafts, strict=True):
        texts = [request.tokens]
        for token, parent in zip(drafted, above, strict=True):
            texts.append([*texts[parent], token])
        rows.extend(model.logits(text) for text in texts)
    chain = all(above == list(range(len(above))) for _, above in drafts)
    tokens = [[request.tokens[-1], *drafted] for request, (drafted, _) in zip(requests, drafts, strict=True)]
    proposal = Proposal(tokens, None if chain else [[-1, *above] for _, above in drafts])
    return verify(proposal, torch.stack(rows), requests, Sampler((EOS,)))


def decode(
    model: Markov, params: list[SamplingParams], draft: Draft
) -> tuple[list[list[int]], list[list[dict[int, float]]]]:
    """Texts and logprobs of one batch of requests, drafted by `draft`, each cut at LENGTH tokens."""
    requests = [Request(str(i), [1, 2, 1 + i], 3, p, seed=50 + i) for i, p in enumerate(params)]
    while any(len(request.generated) < LENGTH for request in requests):
        verdict = step(model, requests, [draft(request.tokens) for request in requests])
        for r, request in enumerate(requests):
            request.tokens.extend(verdict.emitted[r])
            request.logprobs.extend(verdict.logprobs[r] if verdict.logprobs else [])
    return [r.generated[:LENGTH] for r in requests], [r.logprobs[:LENGTH] for r in requests]


def no_draft(tokens: list[int]) -> tuple[list[int], list[int]]:
    return [], []


def random_drafts(model: Markov, seed: int, trees: bool) -> Draft:
    """Guesses of every quality: the likeliest token, or any token, at the end of a chain or anywhere in a tree."""
    rng = random.Random(seed)

    def draft(tokens: list[int]) -> tuple[list[int], list[int]]:
        texts, drafted, parents = [tokens], [], []
        for node in range(rng.randrange(6)):
            parent = rng.randrange(node + 1) if trees else node
            logits = model.logits(texts[parent])
            drafted.append(int(logits.argmax()) if rng.random() < 0.7 else rng.randrange(VOCAB))
            parents.append(parent)
            texts.append([*texts[parent], drafted[-1]])
        return drafted, parents

    return draft


any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.8]),
    top_k=st.sampled_from([0, 4]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.25]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logit_bias=st.sampled_from([None, {4: 1.0, 7: -2.0}]),
    min_tokens=st.sampled_from([0, 9]),
    logprobs=st.sampled_from([None, 2]),
)


@settings(max_examples=60, deadline=None)
@given(params=st.lists(any_params, min_size=1, max_size=3), trees=st.booleans(), seed=st.integers(0, 10**6))
def test_any_draft_gives_the_text_of_plain_decoding(params: list[SamplingParams], trees: bool, seed: int) -> None:
    """Chains and trees, good and bad guesses, batch 1 to 3: token for token, logprobs included."""
    model = Markov(seed)
    texts, logprobs = decode(model, params, random_drafts(model, seed, trees))
    for r in range(len(params)):
        request = Request("plain", [1, 2, 1 + r], 3, params[r], seed=50 + r)
        while len(request.generated) < LENGTH:
            verdict = step(model, [request], [no_draft(request.tokens)])
            request.tokens.extend(verdict.emitted[0])
            request.logprobs.extend(verdict.logprobs[0] if verdict.logprobs else [])
        assert texts[r] == request.generated
        assert logprobs[r] == request.logprobs


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8}, {"temperature": 0.8, "presence_penalty": 0.4}], ids=str)
def test_the_targets_own_choices_are_all_accepted(params: dict[str, Any]) -> None:
    """A drafter that knows the text gets every draft accepted; one that errs at draft j gets exactly j - 1."""
    model, width = Markov(5), 4
    [text], _ = decode(model, [SamplingParams(**params)], no_draft)
    for wrong in range(1, width + 2):
        drafts = list(text[:width])
        if wrong <= width:
            drafts[wrong - 1] = (drafts[wrong - 1] + 1) % VOCAB
        request = Request("0", [1, 2, 1], 3, SamplingParams(**params), seed=50)
        verdict = step(model, [request], [(drafts, list(range(width)))])
        assert verdict.paths == [list(range(wrong))]
        assert verdict.emitted == [text[:wrong]]


def test_worked_example_of_a_tree() -> None:
    """Pending 5; children 8 and 9; 9 has children 1 and 2; 2 has child 3. The target says 9, 2, then 7."""
    proposal = Proposal([[5, 8, 9, 1, 2, 3]], [[-1, 0, 0, 2, 2, 4]])
    says = [9, 4, 2, 4, 7, 4]
    logits = torch.nn.functional.one_hot(torch.tensor(says), VOCAB).float()
    request = Request("0", [5], 1, SamplingParams(), 0)
    verdict = verify(proposal, logits, [request], Sampler())
    assert verdict == Verdict([[0, 2, 4]], [[9, 2, 7]], None)


def test_worked_example_of_chains() -> None:
    proposal = Proposal([[5, 8, 9], [6], [4, 0]])
    logits = torch.nn.functional.one_hot(torch.tensor([8, 7, 3, 2, 0, 1]), VOCAB).float()
    requests = [Request(str(i), [row[0]], 1, SamplingParams(), 0) for i, row in enumerate(proposal.tokens)]
    verdict = verify(proposal, logits, requests, Sampler())
    assert verdict.paths == [[0, 1], [0], [0, 1]]
    assert verdict.emitted == [[8, 7], [2], [0, 1]]


def test_logprobs_only_for_those_who_ask() -> None:
    requests = [Request("0", [5], 1, SamplingParams(logprobs=1), 0), Request("1", [5], 1, SamplingParams(), 0)]
    verdict = verify(Proposal([[5], [5]]), torch.eye(2, VOCAB), requests, Sampler())
    assert verdict.logprobs is not None
    assert [len(one) for one in verdict.logprobs] == [1, 0]


def test_rejected_drafts_and_their_log_probability_for_those_who_ask() -> None:
    """Pending 5, drafts 8 and 9; the target says 8, then 7. Asked for, 9 is told with the 7 that took its place."""
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[[0, 1, 3], [8, 7, 8]] = 9.0
    asked, quiet = SamplingParams(logprobs=0, rejected_drafts=True), SamplingParams(logprobs=0)
    requests = [Request("0", [5], 1, asked, 0), Request("1", [5], 1, quiet, 0)]
    verdict = verify(Proposal([[5, 8, 9], [5, 9]]), logits, requests, Sampler())
    assert verdict.emitted[0] == [8, 7] and verdict.rejected == {0: 9} and verdict.logprobs is not None
    first, last = verdict.logprobs[0]
    assert set(first) == {8} and set(last) == {7, 9}
    assert last[9] == pytest.approx(logits[1].log_softmax(-1)[9].item(), abs=1e-5)
    assert [set(row) for row in verdict.logprobs[1]] == [{8}]


def test_nothing_is_rejected_where_nothing_was_drafted_or_all_was_right() -> None:
    asked = SamplingParams(rejected_drafts=True)
    requests = [Request(str(i), [5], 1, asked, 0) for i in range(2)]
    logits = torch.nn.functional.one_hot(torch.tensor([8, 9, 3, 2]), VOCAB).float()
    assert not verify(Proposal([[5, 8, 9], [6]]), logits, requests, Sampler()).rejected


def test_the_rejected_child_of_a_tree() -> None:
    """Of the children 1 and 3 of the last node that agreed, the first is told."""
    proposal = Proposal([[5, 8, 9, 1, 3]], [[-1, 0, 0, 2, 2]])
    logits = torch.nn.functional.one_hot(torch.tensor([9, 4, 2, 4, 4]), VOCAB).float()
    verdict = verify(proposal, logits, [Request("0", [5], 1, SamplingParams(rejected_drafts=True), 0)], Sampler())
    assert verdict.emitted == [[9, 2]] and verdict.rejected == {0: 1}
