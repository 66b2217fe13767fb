"""Grammars: masks against brute force, walks back and forth, what is forced, what is refused; and answers in form."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from grammar_tools import EOS, FORMS, SCHEMA, VOCAB, allowed, counted, grammars, start, tokenizer, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline import LLM, SamplingParams, StructuredOutputsParams, UserError
from paceline.grammar import KEPT, Grammars
from paceline.request import FORCED, Request
from paceline.sampling import Sampler
from paceline.spec.forced import with_forced
from paceline.spec.proposal import Proposal
from paceline.structured import MAX_LENGTH

WORDS = st.text(alphabet="onetwhrfi ", min_size=1, max_size=9)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(st.integers(0, 99), max_size=6))
def test_masks_are_those_of_brute_force(language: list[str], choices: list[int]) -> None:
    """A token is allowed where some text of the language goes on with it, EOS where one ends. Where the next bytes are
    sure, only the tokens that the tokenizer itself would make of them."""
    grammar = start(choice=language)
    path = walk(grammar, choices)
    texts = {token: tokenizer().token(token) for token in range(tokenizer().vocab_size)}
    for end in range(len(path) + 1):
        said = tokenizer().decode(path[:end])
        possible = {t for t, piece in texts.items() if t > 3 and any(x.startswith(said + piece) for x in language)}
        possible |= {EOS} if said in language else set()
        forced = grammar.forced(path[:end], 99)
        assert allowed(grammar, path[:end]) == ({forced[0]} if forced else possible), said
        assert not forced or forced[0] in possible


@settings(deadline=None)
@given(st.data())
def test_a_mask_depends_on_its_path_alone(data: st.DataObject) -> None:
    """Wherever the matcher was before, and whatever the grammar refused on the way."""
    asked, _ = data.draw(st.sampled_from(FORMS))
    grammar = grammars().start(asked)
    steps = st.lists(st.integers(0, 99), max_size=8)
    paths = [walk(grammars().start(asked), data.draw(steps)) for _ in range(3)]
    nodes = [path[: data.draw(st.integers(0, len(path)))] for path in paths * 2]
    wild = [[*nodes[0], data.draw(st.integers(4, VOCAB - 1))], [*nodes[1], EOS, EOS]]
    for path in data.draw(st.permutations(nodes + wild)):
        fresh = grammars().start(asked)
        inside = fresh.allowed(path) == len(path)
        assert grammar.allowed(path) == fresh.allowed(path) and grammar.error is None
        assert grammar.mask(path) == grammars().start(asked).mask(path)
        assert inside or len(allowed(grammar, path)) == VOCAB
    for token in paths[0]:
        grammar.commit(token)
    assert grammar.mask([]) == grammars().start(asked).mask(paths[0])


def test_the_end_of_a_grammar() -> None:
    """Nothing but EOS may follow, where anything may; the last token tells."""
    ids = tokenizer().encode("the lazy dog")
    grammar = start(choice=["the lazy dog", "the"])
    assert [grammar.commit(token) for token in ids] == [False] * (len(ids) - 1) + [True]
    short = start(choice=["the lazy dog", "the"])
    assert not any(short.commit(token) for token in tokenizer().encode("the"))
    assert EOS in allowed(short, []) and len(allowed(short, [])) > 1


def test_what_is_forced_is_drafted_and_what_is_refused_is_not() -> None:
    grammar = start(choice=["one two three", "one two six"])
    ids = tokenizer().encode("one two ")
    assert grammar.forced((), 99) and grammar.forced((), 1) == grammar.forced((), 99)[:1]
    assert grammar.room(1)[0] == 0 and grammar.room(9) == (9, 17)
    request = Request("r", [7], 1, SamplingParams(), 0, grammar=grammar)
    plain = Request("p", [8], 1, SamplingParams(), 0)
    first = ids[0]
    proposal = Proposal([[7, first, 300], [8, 30, 31]])
    found = with_forced(proposal, [request, plain], [6, 2])
    chain = found.tokens[0]
    assert chain[:2] == [7, first] and 300 not in chain and found.forced == [len(chain) - 2, 0]
    assert "one two three".startswith(tokenizer().decode(chain[1:])) and len(chain) > 2
    assert found.tokens[1] == [8, 30, 31]
    assert with_forced(proposal, [plain, plain], [2, 2]) is proposal


def test_the_grammar_has_the_last_word_and_filters_come_after_it() -> None:
    """Biases, minima and cuts choose among the allowed tokens, also where they would leave none of them."""
    sampler, logits = Sampler([EOS]), torch.linspace(0, 9, VOCAB)[None]
    yes, no = tokenizer().encode("x")[0], tokenizer().encode("z")[0]

    def chosen(**params: Any) -> int:
        asked = StructuredOutputsParams(choice=["x", "z"])
        given = SamplingParams(structured_outputs=asked, **params)
        request = Request("r", [7], 1, given, 0, grammar=grammars().start(asked))
        return int(sampler.choose(logits, [request], [[]]))

    assert chosen() == max(yes, no) == no
    assert chosen(temperature=1.0, top_k=1) == chosen(temperature=1.0, top_p=0.01) == no
    assert chosen(temperature=1.0, min_p=1.0) == no
    assert chosen(logit_bias={no: float("-inf")}) == yes
    assert chosen(logit_bias={no: float("-inf"), yes: -1e38}) in (yes, no)
    assert {chosen(temperature=1.0, seed=seed) for seed in range(2)} <= {yes, no}


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_speculative_tokens=3)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("asked", "pattern"), FORMS, ids=[asked.form for asked, _ in FORMS])
def test_answers_have_the_form_whoever_drafts(
    llm: LLM, asked: StructuredOutputsParams, pattern: str, temperature: float
) -> None:
    """The same tokens with and without speculation; every prefix could still become an answer; the whole is one."""
    params = SamplingParams(structured_outputs=asked, temperature=temperature, seed=5, n=3, max_tokens=120)
    plain = llm.with_options(drafter="none", max_num_seqs=1)
    prompts = ["one two three", "the quick brown fox"]
    expected = plain.generate(prompts, params)
    off = [plain.engine.add_request(str(i), x.prompt_token_ids, params, drafter="none") for i, x in enumerate(expected)]
    while plain.engine.has_unfinished:
        plain.engine.step()
    assert [request.generated for requests in off for request in requests] == tokens_of(expected)
    assert all(set(request.origins) == {0} for requests in off for request in requests)
    for result in expected:
        for answer in result.outputs:
            pieces = [tokenizer().decode(answer.token_ids[:end]) for end in range(len(answer.token_ids) + 1)]
            for piece in pieces:
                assert regex.fullmatch(pattern, piece.rstrip("\ufffd"), partial=True), piece
            assert answer.finish_reason == "stop" and regex.fullmatch(pattern, answer.text), answer.text
            assert asked.form != "json" or json.loads(answer.text)
            assert answer.speculation.forced == answer.origins.count(FORCED) and set(answer.origins) <= {0, FORCED}
    for drafter in ("mtp", "ngram"):
        for k in (1, 3):
            found = llm.with_options(drafter=drafter, num_speculative_tokens=k).generate(prompts, params)
            assert tokens_of(found) == tokens_of(expected), drafter


def tokens_of(results: list[Any]) -> list[list[int]]:
    return [answer.token_ids for result in results for answer in result.outputs]


def test_forced_tokens_are_counted_apart(llm: LLM) -> None:
    """They are nobody's drafts, they come out of the target's passes, and speculation that is off drafts none."""
    asked = StructuredOutputsParams(choice=["how many words are in this list: one two three four five six"])
    params = SamplingParams(structured_outputs=asked)
    (answer,) = llm.generate("one", params)[0].outputs
    stats = answer.speculation
    assert answer.text == asked.choice[0] and stats.forced == answer.origins.count(FORCED) > 5  # type: ignore[index]
    assert stats.accepted == sum(origin > 0 for origin in answer.origins) and stats.as_dict()["forced"] == stats.forced
    assert stats.verifications * 8 < len(answer.token_ids)
    off = llm.engine.add_request("off", [5], params, num_speculative_tokens=0)
    while llm.engine.has_unfinished:
        llm.engine.step()
    assert off[0].generated == answer.token_ids and set(off[0].origins) == {0}
    (undrafted,) = llm.with_options(drafter="none").generate("one", params)[0].outputs
    assert undrafted.token_ids == answer.token_ids and undrafted.speculation.forced == stats.forced


def test_forms_and_plain_answers_share_batches(llm: LLM) -> None:
    """With penalties, biases, few blocks: the same tokens as one by one."""
    params = [
        SamplingParams(structured_outputs=asked, max_tokens=60, temperature=0.7, seed=i)
        for i, (asked, _) in enumerate(FORMS)
    ]
    params += [SamplingParams(max_tokens=30), SamplingParams(max_tokens=30, temperature=0.9, seed=4)]
    params.append(replace(params[0], frequency_penalty=0.5, min_tokens=20, logit_bias={9: 3.0}, top_p=0.9))
    prompts = ["one two three four five"] * len(params)
    alone = llm.with_options(drafter="none", max_num_seqs=1).generate(prompts, params)
    together = llm.with_options(num_blocks=24, block_size=4, max_model_len=90).generate(prompts, params)
    assert tokens_of(together) == tokens_of(alone)


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "none of them"),
    ({"regex": "a", "json": {}}, "json and regex"),
    ({"choice": []}, "at least one"),
    ({"choice": "yes"}, "list"),
    ({"choice": ["a"] * 5000}, "more than"),
    ({"regex": "a" * (MAX_LENGTH + 1)}, "longer"),
    ({"json": {"a": {1, 2}}}, "JSON"),
    ({"json": "{"}, "JSON schema cannot be used"),
    ({"json": "[]"}, "object"),
    ({"json": {"type": "zzz"}}, "zzz"),
    ({"json": {"not": {}}}, "not"),
    ({"json": {"$ref": "#"}}, "no text"),
    ({"json": '{"items":' * 900 + "{}" + "}" * 900}, "recursion"),
    ({"json": '{"const":"\\ud800"}'}, "hex escape"),
    ({"regex": "("}, "unclosed group"),
    ({"regex": "(?=a)b"}, "look-around"),
    ({"regex": "(" * 20000 + ")" * 20000}, "regex"),
    ({"regex": "\ud800"}, "regex"),
    ({"grammar": "a: b"}, "grammar"),
    ({"grammar": "start: a\na: b\nb: a"}, "no text"),
    ({"grammar": "start: " + "(" * 20000 + '"a"' + ")" * 20000}, "nested"),
    ({"regex": "a", "whitespace_pattern": " "}, "whitespace_pattern"),
]


@pytest.mark.parametrize(("asked", "named"), BAD, ids=[str(asked)[:30] for asked, _ in BAD])
def test_what_cannot_be_used_is_refused_with_the_reason(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as error:
        start(**asked)
    sentence = str(error.value)
    assert named in sentence and sentence.endswith(".") and "\n" not in sentence and len(sentence) < 400


@pytest.mark.parametrize(
    "grammar",
    ['start: a{100000}\na: b{1000}\nb: "x"', 'start: "one" x\nx: x "two"', 'start: a\na: "one" b\nb: "two" a'],
)
def test_a_grammar_that_leads_nowhere_ends_its_request_alone(llm: LLM, grammar: str) -> None:
    """Too complex, or endless: nothing tells before some tokens are written."""
    bad = SamplingParams(structured_outputs=StructuredOutputsParams(grammar=grammar))
    good = SamplingParams(max_tokens=8)
    results = llm.generate(["one", "one"], [bad, good])
    assert results[0].outputs[0].finish_reason == "error" and results[1].outputs[0].finish_reason == "length"
    assert llm.generate("one", good)[0].outputs[0].token_ids == results[1].outputs[0].token_ids


def test_compiled_grammars_are_kept_and_bounded() -> None:
    mine = Grammars(tokenizer(), VOCAB, [EOS])
    asked = StructuredOutputsParams(regex="a{3}")
    assert mine.compiled(asked) is mine.compiled(StructuredOutputsParams(regex="a{3}"))
    for number in range(KEPT + 5):
        mine.start(StructuredOutputsParams(regex=f"b{{{number + 1}}}"))
    assert mine.compiled.cache_info().currsize == KEPT


def test_without_the_library_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    mine = Grammars(tokenizer(), VOCAB, [EOS])
    mine.prepare()
    with pytest.raises(UserError, match="pip install llguidance"):
        mine.start(StructuredOutputsParams(regex="a"))


def test_a_tokenizer_that_cannot_do_it_says_so() -> None:
    class Odd:
        def to_json(self) -> str:
            return '{"model": {"type": "WordLevel", "vocab": {"one": 0}, "unk_token": "one"}}'

    mine = Grammars(Odd(), VOCAB, [EOS])
    mine.prepare()
    with pytest.raises(UserError, match="tokenizer"):
        mine.start(StructuredOutputsParams(regex="a"))


def test_the_parameter_is_checked() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        SamplingParams(ignore_eos=True, structured_outputs=StructuredOutputsParams(regex="a"))
    with pytest.raises(UserError, match="StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]


def test_the_drafter_is_masked_too(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never drafts what the grammar refuses."""
    asked = StructuredOutputsParams(json=SCHEMA)
    engine = llm.with_options(drafter="mtp", num_speculative_tokens=3).engine
    (request,) = engine.add_request("r", [5, 6], SamplingParams(structured_outputs=asked, temperature=0.9, seed=1))
    drafted, propose = 0, engine.drafter.propose

    def watched(requests: list[Request], *more: Any) -> Proposal:
        nonlocal drafted
        proposal = propose(requests, *more)
        for tokens in proposal.tokens:
            assert request.grammar is not None and request.grammar.allowed(tokens[1:]) == len(tokens) - 1
            drafted += len(tokens) - 1
        return proposal

    monkeypatch.setattr(engine.drafter, "propose", watched)
    while engine.has_unfinished:
        engine.step()
    assert drafted > 10 and request.finish_reason == "stop"


def test_a_mask_is_computed_once_a_place() -> None:
    """And where a token is forced, never."""
    grammar = start(choice=["one two three", "one six", "ten"])
    calls = counted(grammar)
    path = walk(start(choice=["one two three", "one six", "ten"]), [1, 0])
    for _ in range(3):
        for end in range(len(path) + 1):
            grammar.mask(path[:end])
    forced = sum(bool(grammar.forced(path[:end], 1)) for end in range(len(path) + 1))
    assert calls["compute_bitmask"] == len(path) + 1 - forced > 0
    grammar.commit(path[0])
    grammar.mask([])
    assert calls["compute_bitmask"] <= len(path) + 2 - forced


def test_what_was_looked_at_is_committed_for_nothing() -> None:
    """The matcher goes on once for each token, however often it is asked."""
    grammar = start(choice=["one two three", "one six", "ten"])
    calls = counted(grammar)
    path = walk(start(choice=["one two three", "one six", "ten"]), [1, 0, 0, 0])
    for end, token in enumerate(path):
        assert grammar.answer(path[:end], token) == grammar.answer(path[:end], token) == token
    for token in path:
        grammar.commit(token)
    assert calls["try_consume_tokens"] == len(path)
    assert not calls["consume_token"] and not calls["rollback"]
