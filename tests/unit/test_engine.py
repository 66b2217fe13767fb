"""The engine with a mock model: whatever the drafter, chunks, cache hits, preemptions and aborts, the plain text."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_model import EOS, VOCAB, Letters, MockDrafter, MockTarget, letter, make_engine, plain_text

from paceline.engine.admit import derived_seed
from paceline.engine.engine import Engine
from paceline.errors import UserError
from paceline.request import Request, SamplingParams


def drafter(skill: float = 0.7, *, seed: int = 0, trees: bool = False, lazy: bool = False) -> MockDrafter:
    return MockDrafter(random.Random(seed), skill, trees, lazy)


def finish(engine: Engine, most: int = 2000) -> None:
    for _ in range(most):
        if not engine.has_unfinished:
            return
        engine.step()
    raise AssertionError(f"requests have not ended after {most} steps")


def check_text(request: Request, max_model_len: int) -> None:
    """Finished: the plain text. Aborted: a beginning of it."""
    expected, reason = plain_text(request.tokens[: request.num_prompt], request.params, max_model_len)
    if request.finish_reason == "abort":
        assert request.generated == expected[: len(request.generated)]
    else:
        assert (request.generated, request.finish_reason) == (expected, reason)
    assert len(request.origins) == len(request.generated)
    assert sum(origin > 0 for origin in request.origins) == request.stats.accepted
    assert request.stats.accepted <= request.stats.drafted
    assert request.stats.emitted <= len(request.generated)


def check_empty(engine: Engine) -> None:
    """Every block, row and ending has come back."""
    scheduler = engine.scheduler
    allocator = scheduler.allocator
    assert allocator.num_free == allocator.num_blocks
    assert not scheduler.running and not scheduler.waiting and not scheduler.has_unfinished
    engine.step()  # the last rows are forgotten
    assert not engine.drafter.known  # type: ignore[attr-defined]


params_of = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 30),
    ignore_eos=st.booleans(),
    stop=st.sampled_from([(), (), ("ab",), ("yx", "c"), ("xyx",)]),
    stop_token_ids=st.sampled_from([(), (), (3,)]),
)
# Few beginnings, so that prefix hits and requests that read the same text at once are common.
prompts_of = st.builds(
    lambda head, length, tail: [1, 2, 3, 4, 5, 6, 1, 1, 2, 2, 3, 3, 4, 4][: head * length] + tail,
    st.integers(0, 1),
    st.integers(1, 14),
    st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=6),
)
events_of = st.lists(
    st.one_of(
        st.tuples(st.just("add"), prompts_of, params_of, st.sampled_from([None, 0, 1])),
        st.tuples(st.just("abort"), st.integers(0, 20)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), events=events_of)
def test_any_schedule_gives_the_plain_text(data: st.DataObject, events: list[tuple]) -> None:
    block_size = data.draw(st.sampled_from([1, 2, 4, 5]), "block_size")
    max_model_len = data.draw(st.integers(22, 40), "max_model_len")
    least = -(-max_model_len // block_size)
    max_num_seqs = data.draw(st.integers(1, 5), "max_num_seqs")
    engine = make_engine(
        drafter(
            data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]), "skill"),
            seed=data.draw(st.integers(0, 99), "seed"),
            trees=data.draw(st.booleans(), "trees"),
            lazy=data.draw(st.booleans(), "lazy"),
        ),
        num_blocks=data.draw(st.integers(least, 2 * least), "num_blocks"),
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=data.draw(st.integers(max_num_seqs, max_num_seqs + 20), "max_num_batched_tokens"),
        max_model_len=max_model_len,
        prefix_caching=data.draw(st.booleans(), "prefix_caching"),
        k=data.draw(st.integers(1, 5), "k"),
    )
    requests: list[Request] = []
    for event in events:
        if event[0] == "add":
            _, prompt, params, width = event
            requests += engine.add_request(
                str(len(requests)), prompt, params, decoder=Letters, num_speculative_tokens=width
            )
        elif event[0] == "abort":
            engine.abort(str(event[1]))
        else:
            for _ in range(event[1]):
                engine.step()
                check_running(engine)
    finish(engine)
    for request in requests:
        check_text(request, max_model_len)
    check_empty(engine)
    assert engine.stats.finished == len(requests)
    assert engine.target.largest_batch <= engine.scheduler.max_num_batched_tokens  # type: ignore[attr-defined]


def test_long_random_runs_with_few_blocks() -> None:
    """Many requests at once, so that what is rare above is common: counted, so that it stays so."""
    reached = Counter[str]()
    for seed in range(24):
        rng = random.Random(seed)
        block_size, max_model_len = rng.choice([2, 4]), 40
        engine = make_engine(
            drafter(rng.choice([0.3, 0.9]), seed=seed, trees=seed % 3 == 0, lazy=seed % 2 == 0),
            num_blocks=-(-max_model_len // block_size) + rng.randrange(6),
            block_size=block_size,
            max_num_batched_tokens=rng.randint(4, 24),
            max_model_len=max_model_len,
            prefix_caching=seed % 4 != 1,
            k=rng.randint(1, 6),
        )
        requests: list[Request] = []
        for i in range(12):
            prompt = [1, 2, 3, 4, 5, 6][: rng.randrange(7)] + [rng.randint(1, 6) for _ in range(rng.randint(1, 9))]
            params = SamplingParams(
                max_tokens=rng.randint(1, 30), ignore_eos=rng.random() < 0.7, n=rng.choice([1, 1, 3])
            )
            requests += engine.add_request(str(i), prompt, params)
            for _ in range(rng.randrange(4)):
                engine.step()
                check_running(engine)
            if rng.random() < 0.2:
                reached["aborts"] += engine.abort(rng.choice(requests).id)
        finish(engine)
        for request in requests:
            check_text(request, max_model_len)
        check_empty(engine)
        assert isinstance(engine.target, MockTarget)
        reached["moved"] += engine.target.pool.moved
        reached["preemptions"] += engine.stats.preemptions
        reached["hits"] += engine.stats.prefix_hit_tokens
        reached["accepted"] += engine.stats.speculation.accepted
        reached["rejected"] += engine.stats.speculation.drafted - engine.stats.speculation.accepted
    least = {"aborts": 10, "moved": 50, "preemptions": 50, "hits": 200, "accepted": 500, "rejected": 500}
    assert all(reached[name] >= count for name, count in least.items()), reached


def check_running(engine: Engine) -> None:
    rows = [request.row for request in engine.scheduler.running]
    assert len(set(rows)) == len(rows) and all(row >= 0 for row in rows)
    for request in engine.scheduler.running:
        assert request.lag >= 1
        assert request.cached <= len(request.blocks) * engine.scheduler.allocator.block_size
    for request in engine.scheduler.waiting:
        assert request.row == -1 and not request.blocks and request.cached == 0


def test_a_perfect_drafter_needs_a_step_for_each_k_plus_one_tokens() -> None:
    engine = make_engine(drafter(1.0), k=3)
    (request,) = engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=21, ignore_eos=True))
    finish(engine)
    assert engine.stats.steps == 1 + 5
    assert request.origins == [0] + [1, 2, 3, 0] * 5
    assert request.stats.acceptance_length == 4 and request.stats.acceptance_rate == 1


def test_drafts_stop_where_max_tokens_and_the_context_stop() -> None:
    engine = make_engine(drafter(1.0), k=5, max_model_len=12)
    (request,) = engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=100, ignore_eos=True))
    finish(engine)
    assert (len(request.tokens), request.finish_reason) == (12, "length")
    assert request.origins == [0, 1, 2, 3, 4, 5, 0, 1, 0]


def test_n_samples_share_the_prompt_through_the_prefix_cache() -> None:
    engine = make_engine(drafter(), block_size=4)
    requests = engine.add_request("a", [1, 2, 3, 4, 5, 6, 1, 2, 3, 4], SamplingParams(n=3, seed=5))
    finish(engine)
    assert [request.id for request in requests] == ["a/0", "a/1", "a/2"]
    assert [request.prefix_hit_tokens for request in requests] == [0, 8, 8]
    assert [request.seed for request in requests] == [5, derived_seed(5, 1), derived_seed(5, 2)]
    assert len({request.seed for request in requests}) == 3


def test_a_request_without_a_seed_is_told_one() -> None:
    engine = make_engine(drafter())
    (first,), (second,) = (engine.add_request(name, [1], SamplingParams()) for name in "ab")
    assert first.seed != second.seed


def test_preemption_happens_and_keeps_the_text() -> None:
    engine = make_engine(drafter(), num_blocks=10, block_size=4, max_model_len=40)
    requests = [
        engine.add_request(str(i), [i, 2, 3], SamplingParams(max_tokens=30, ignore_eos=True))[0] for i in range(1, 5)
    ]
    finish(engine)
    assert engine.stats.preemptions > 0
    assert requests[0].preemptions == 0, "the first to come is never preempted"
    for request in requests:
        check_text(request, 40)
    check_empty(engine)


def test_long_prompts_do_not_stop_the_decodes() -> None:
    engine = make_engine(drafter(0.0), max_num_batched_tokens=4, max_num_seqs=2)
    (first,) = engine.add_request("a", [1], SamplingParams(max_tokens=20, ignore_eos=True))
    engine.step()
    (second,) = engine.add_request("b", [2] * 30, SamplingParams(max_tokens=2, ignore_eos=True))
    for done in range(1, 6):
        engine.step()
        assert len(first.generated) == 1 + done
        assert second.cached > 0


@pytest.mark.parametrize(
    ("prompt", "params", "width", "message"),
    [
        ([], {}, None, "empty"),
        ([1] * 48, {}, None, "48 tokens"),
        ([VOCAB], {}, None, "token ids"),
        ([-1], {}, None, "token ids"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, None, "logit_bias"),
        ([1], {"stop_token_ids": (VOCAB,)}, None, "stop_token_ids"),
        ([1], {}, 4, "0 to 3"),
        ([1], {}, -1, "0 to 3"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    prompt: list[int], params: dict, width: int | None, message: str
) -> None:
    engine = make_engine(drafter())
    with pytest.raises(UserError, match=message):
        engine.add_request("a", prompt, SamplingParams(**params), num_speculative_tokens=width)
    assert not engine.has_unfinished


def test_two_requests_cannot_have_one_id() -> None:
    engine = make_engine(drafter())
    engine.add_request("a", [1], SamplingParams())
    with pytest.raises(UserError, match="own id"):
        engine.add_request("a", [1], SamplingParams())


def test_the_mock_notices_a_wrong_slot() -> None:
    """The oracle is alive: one token in a wrong place, and the run fails."""
    engine = make_engine(drafter(0.0))
    assert isinstance(engine.target, MockTarget)
    (request,) = engine.add_request("a", [1, 2, 3, 4, 5, 6], SamplingParams(max_tokens=20, ignore_eos=True))
    engine.step()
    slot = request.blocks[0] * 4 + 2
    engine.target.pool.slots[slot] = (EOS, 2)
    with pytest.raises(AssertionError, match="another prefix"):
        engine.step()


def test_text_ends_before_the_stop_string() -> None:
    prompt, params = [1, 2, 3], SamplingParams(max_tokens=40, ignore_eos=True)
    whole = "".join(map(letter, plain_text(prompt, params, 48)[0]))
    stop = whole[9:12]
    engine = make_engine(drafter(1.0), k=5)
    (request,) = engine.add_request(
        "a", prompt, SamplingParams(max_tokens=40, ignore_eos=True, stop=(stop,)), decoder=Letters
    )
    pieces = []
    while engine.has_unfinished:
        for output in engine.step():
            assert output.text is not None
            pieces.append(output.text.take())
    assert request.finish_reason == "stop"
    assert "".join(pieces) == whole[: whole.index(stop)]
