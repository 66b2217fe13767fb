"""The Python API on the tiny model: shapes of what comes back, streams, many answers, aborts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paceline import LLM, SamplingParams, UserError

WARM = SamplingParams(max_tokens=24, temperature=0.9, seed=7)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_speculative_tokens=4)


def test_outputs_are_consistent(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.9, seed=3, n=3, logprobs=2)
    results = llm.generate(["one two", "the quick brown fox"], params)
    for prompt, result in zip(["one two", "the quick brown fox"], results, strict=True):
        assert result.prompt == prompt and result.prompt_token_ids == llm.tokenizer.encode(prompt)
        assert [answer.index for answer in result.outputs] == [0, 1, 2]
        assert len({answer.seed for answer in result.outputs}) == 3 and result.outputs[0].seed == 3
        for answer in result.outputs:
            assert answer.text == llm.tokenizer.decode(answer.token_ids)
            assert len(answer.origins) == len(answer.token_ids) and answer.logprobs is not None
            assert all(token in row for token, row in zip(answer.token_ids, answer.logprobs, strict=True))
            assert sum(origin > 0 for origin in answer.origins) <= answer.speculation.accepted
            assert answer.timing.tokens_per_second > 0 and answer.timing.ttft_ms > 0


def test_rejected_drafts_stand_beside_the_tokens_that_took_their_place(llm: LLM) -> None:
    """As many as verifications that did not take all; never an accepted draft's place, never the token itself."""
    params = SamplingParams(max_tokens=40, temperature=0.9, seed=3, logprobs=0, rejected_drafts=True, ignore_eos=True)
    answer = llm.generate("one two", params)[0].outputs[0]
    assert answer.rejected is not None and answer.logprobs is not None and any(answer.rejected)
    for token, origin, other, row in zip(
        answer.token_ids, answer.origins, answer.rejected, answer.logprobs, strict=True
    ):
        assert other is None or (origin == 0 and other != token)
        assert set(row) == {token} | ({other} - {None})
    told = sum(other is not None for other in answer.rejected)
    assert told <= answer.speculation.verifications and told + answer.speculation.accepted <= answer.speculation.drafted
    plain = llm.generate("one two", replace(params, rejected_drafts=False))[0].outputs[0]
    assert plain.rejected is None and plain.token_ids == answer.token_ids


@pytest.mark.parametrize(
    "options",
    [{}, {"max_num_seqs": 2, "max_num_batched_tokens": 5}, {"block_size": 4, "num_blocks": 10, "max_model_len": 32}],
)
def test_the_prompts_own_logprobs(llm: LLM, options: dict[str, int]) -> None:
    """To the last bit those of generating each of its tokens; in chunks, after prefix hits and preemption as well."""
    other = llm.with_options(**options)
    texts = ("the quick brown fox jumps over", "one two three four five six")
    prompts = [(llm.tokenizer.encode(text) * 3)[:14] for text in texts]
    params = SamplingParams(max_tokens=12, ignore_eos=True, prompt_logprobs=2)
    first, again = other.generate(prompts, params), other.generate(prompts, params)
    assert any(result.outputs[0].preemptions for result in first) == ("num_blocks" in options)
    for prompt, result, repeated in zip(prompts, first, again, strict=True):
        assert result.prompt_logprobs == repeated.prompt_logprobs and result.prompt_logprobs is not None
        assert len(result.prompt_logprobs) == len(prompt) and result.prompt_logprobs[0] is None
        for place in range(1, len(prompt)):
            forced = SamplingParams(max_tokens=1, logprobs=2, logit_bias={prompt[place]: 1e9})
            (row,) = llm.generate([prompt[:place]], forced)[0].outputs[0].logprobs or []
            assert row == result.prompt_logprobs[place]
    assert llm.generate(prompts[0], WARM)[0].prompt_logprobs is None


def test_kinds_of_prompts(llm: LLM) -> None:
    """Text, its ids, and a chat: the ids are what counts."""
    messages = [{"role": "user", "content": "one two"}]
    text, ids = llm.generate(["one two", llm.tokenizer.encode("one two")], WARM)
    assert text.outputs[0].token_ids == ids.outputs[0].token_ids and ids.prompt is None
    chat = llm.chat(messages, WARM)[0]
    assert chat.prompt == messages and chat.prompt_token_ids == llm.tokenizer.apply_chat_template(messages)
    assert [r.outputs[0].token_ids for r in llm.chat([messages, messages], WARM)] == [chat.outputs[0].token_ids] * 2


def test_a_stream_adds_up(llm: LLM) -> None:
    whole = llm.generate("one two three", WARM)[0].outputs[0]
    deltas = list(llm.stream("one two three", WARM))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
    assert [origin for delta in deltas for origin in delta.origins] == whole.origins
    assert [delta.finished is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]
    assert deltas[-1].finished is not None and deltas[-1].finished.token_ids == whole.token_ids


def test_a_stop_string_ends_text_and_stream(llm: LLM) -> None:
    free = llm.generate("one two three", WARM)[0].outputs[0]
    stop = next(free.text[i : i + 2] for i in range(4, len(free.text) - 2) if free.text[i : i + 2].isascii())
    params = SamplingParams(max_tokens=24, temperature=0.9, seed=7, stop=(stop,))
    answer = llm.generate("one two three", params)[0].outputs[0]
    assert answer.finish_reason == "stop" and answer.text == free.text[: free.text.index(stop)]
    assert "".join(delta.text for delta in llm.stream("one two three", params)) == answer.text
    assert answer.token_ids == free.token_ids[: len(answer.token_ids)]


def test_parameters_may_differ_by_prompt(llm: LLM) -> None:
    each = [SamplingParams(max_tokens=3), SamplingParams(max_tokens=5)]
    lengths = [len(result.outputs[0].token_ids) for result in llm.generate(["one", "two"], each)]
    assert lengths == [3, 5]
    with pytest.raises(UserError, match="2 prompts but 1 sampling"):
        llm.generate(["one", "two"], each[:1])


def test_what_is_refused_leaves_nothing_behind(llm: LLM) -> None:
    for bad in ("", [], [10**6], "one " * 400):
        with pytest.raises(UserError):
            llm.generate(["one two", bad], SamplingParams(max_tokens=4))
        assert not llm.engine.has_unfinished
    with pytest.raises(UserError, match="one answer"):
        next(llm.stream("one", SamplingParams(n=2)))


@pytest.mark.parametrize("bad", [{"prompt": "one"}, [{"prompt": "one"}], [1, "one"], (1, 2), [["one"]]])
def test_what_is_no_prompt_is_told_apart(llm: LLM, bad: object) -> None:
    with pytest.raises(UserError, match="A prompt is text, a list of token ids"):
        llm.generate(bad)  # type: ignore[arg-type]


def test_a_chat_is_no_text(llm: LLM) -> None:
    with pytest.raises(UserError, match="messages with role and content"):
        llm.chat("one two")  # type: ignore[arg-type]


def test_two_runs_on_one_engine_do_not_take_each_others_news(llm: LLM) -> None:
    stream = llm.stream("one two three", sampling_params=WARM)
    first = next(stream)
    with pytest.raises(UserError, match="still streaming"):
        llm.generate("one", sampling_params=WARM)
    assert llm.with_options().generate("one", WARM)
    assert [first, *stream][-1].finished is not None


def test_results_come_in_order_as_soon_as_they_are_there(llm: LLM) -> None:
    each = [SamplingParams(max_tokens=length, ignore_eos=True, n=2) for length in (9, 1, 40)]
    results = llm.iterate(["one", "two", "three"], each)
    first, second = next(results), next(results)
    assert llm.engine.has_unfinished and (first.prompt, second.prompt) == ("one", "two")
    (third,) = results
    assert [len(answer.token_ids) for answer in third.outputs] == [40, 40] and not llm.engine.has_unfinished


def test_leaving_a_stream_aborts_it(llm: LLM) -> None:
    stream = llm.stream("one two three", SamplingParams(max_tokens=50))
    next(stream)
    stream.close()
    assert not llm.engine.has_unfinished


def test_unknown_options_are_named(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="block_sise"):
        LLM(tiny_model, block_sise=4)
    with pytest.raises(UserError, match="context is 256"):
        LLM(tiny_model, max_model_len=1000)
