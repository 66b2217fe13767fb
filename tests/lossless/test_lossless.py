"""Promise 1 on the tiny model: every drafter, length, batch and cache circumstance gives plain decoding's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from conftest import MTP_FAMILIES, write_tiny
from paceline.assets import heldout_prompts
from paceline.bench.lossless import CIRCUMSTANCES, FULL, QUICK, Arm, differences, matrix, verify_lossless
from paceline.drafters import drafter_names
from paceline.kernels import native
from paceline.llm import LLM
from paceline.request import SamplingParams
from paceline.structured import StructuredOutputsParams

PROMPTS = [
    "one two three four",
    "the quick brown fox jumps over",
    "how many words are in this list: one two one two one",
]


LIST = StructuredOutputsParams(regex="a list of words: [a-z]{2,9}(, [a-z]{2,9}){2,5}")


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["as it runs here", "plain torch"])
def test_every_arm_gives_the_same_tokens(tiny_model: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the circumstances came about: drafts were accepted, prefixes were hit, requests were preempted."""
    if way == "plain torch":
        monkeypatch.setattr(native, "library", lambda: None)
    llm = LLM(tiny_model)  # weights are packed for the way they are multiplied
    report = verify_lossless(llm, PROMPTS * 2, matrix(replace(QUICK, max_tokens=40, lengths=(1, 3, 5))))
    assert report.differences == []
    assert report.accepted > 0 and report.prefix_hit_tokens > 0 and report.preemptions > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(MTP_FAMILIES.keys() - {"deepseek_v3"}))
def test_other_families_give_the_same_tokens(family: str, tmp_path: Path) -> None:
    llm = LLM(write_tiny(tmp_path / family, **MTP_FAMILIES[family]))
    report = verify_lossless(llm, PROMPTS * 2, matrix(replace(QUICK, max_tokens=32, lengths=(3,), batches=(4,))))
    assert report.differences == []
    assert report.accepted > 0 and report.prefix_hit_tokens > 0 and report.preemptions > 0


def test_every_parameter_is_exact_while_speculating(llm: LLM) -> None:
    """Penalties, biases and filters act at drafted positions as they do in plain decoding."""
    params = [
        SamplingParams(max_tokens=30, temperature=0.7, seed=1, presence_penalty=1.5, frequency_penalty=0.5),
        SamplingParams(max_tokens=30, repetition_penalty=1.3, logit_bias={5: 4.0, 9: -3.0}),
        SamplingParams(max_tokens=30, temperature=1.0, seed=2, top_k=20, top_p=0.9, min_p=0.02, min_tokens=25),
        SamplingParams(max_tokens=30, temperature=1.2, seed=3, ignore_eos=True, logprobs=1, n=2),
        SamplingParams(max_tokens=30, temperature=0.9, seed=4, top_p=0.9, structured_outputs=LIST),
    ]
    plain = llm.with_options(drafter="none", max_num_seqs=1)
    for drafter in set(drafter_names()) - {"none"}:
        fast = llm.with_options(drafter=drafter)
        expected, found = (each.generate([PROMPTS[0]] * len(params), params) for each in (plain, fast))
        for one, other in zip(expected, found, strict=True):
            assert [a.token_ids for a in one.outputs] == [a.token_ids for a in other.outputs]
            for a, b in zip(one.outputs, other.outputs, strict=True):
                assert a.logprobs == b.logprobs and a.finish_reason == b.finish_reason and a.text == b.text


def test_a_difference_is_found_where_it_is(llm: LLM) -> None:
    (arm,) = [a for a in matrix(replace(QUICK, lengths=(1,), batches=(1,), seeds=0)) if a.drafter == "mtp"]
    arm = replace(arm, params=SamplingParams(max_tokens=8))
    reference = llm.with_options(drafter="none", max_num_seqs=1)
    expected = reference.generate(PROMPTS, arm.params)
    answer = expected[1].outputs[0]
    wrong = replace(answer, token_ids=[*answer.token_ids[:5], answer.token_ids[5] ^ 1, *answer.token_ids[6:]])
    found = [expected[0], replace(expected[1], outputs=[wrong]), expected[2]]
    (difference,) = differences(reference, arm, PROMPTS, expected, found)
    assert (difference.prompt, difference.position) == (1, 5) and difference.gap >= 0


def test_the_full_matrix_covers_what_it_says() -> None:
    arms = matrix(FULL)
    seen = {(arm.drafter, arm.num_speculative_tokens) for arm in arms}
    drafters = set(drafter_names()) - {"none"}
    assert drafters >= {"mtp", "ngram"} and seen == {("none", 0), *product(drafters, (1, 2, 3, 5, "auto"))}
    names = {circumstance.name for circumstance in CIRCUMSTANCES}
    assert met(arms, "batch") == set(product((1, 4, 16), names))
    assert met(arms, "drafter") == set(product(drafters, names))
    assert met(arms, "num_speculative_tokens") == set(product((1, 2, 3, 5, "auto"), names))
    assert {arm.params.temperature for arm in arms} == {0.0, 0.8} and len({arm.params.seed for arm in arms}) == 3


def met(arms: Sequence[Arm], what: str) -> set[tuple[object, str]]:
    return {(getattr(arm, what), arm.circumstance.name) for arm in arms if arm.drafter != "none"}


def test_held_out_prompts_come_in_turn() -> None:
    prompts = heldout_prompts()
    assert len(prompts) >= 200 and len({prompt.id for prompt in prompts}) == len(prompts)
    sources = {prompt.source for prompt in prompts}
    assert {prompt.source for prompt in prompts[: len(sources)]} == sources
