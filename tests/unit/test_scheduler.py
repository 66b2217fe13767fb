"""Who runs in a step: budgets, order, hits, narrowing and preemption, on the host alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from paceline.cache.blocks import BlockAllocator
from paceline.engine import scheduler as scheduler_module
from paceline.engine.plan import Plan, StepOutput
from paceline.engine.scheduler import Scheduler
from paceline.engine.stop import Ending
from paceline.errors import UserError
from paceline.request import Request, SamplingParams
from paceline.spec.width import FixedWidth

MAX_MODEL_LEN = 64


def make(*, num_blocks: int = 64, block_size: int = 4, seqs: int = 4, batched: int = 32, k: int = 2) -> Scheduler:
    return Scheduler(
        BlockAllocator(num_blocks, block_size),
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        max_model_len=min(MAX_MODEL_LEN, num_blocks * block_size),
        policy=FixedWidth(k),
    )


def add(scheduler: Scheduler, name: str, prompt: list[int], **params: object) -> Request:
    sampling = SamplingParams(**({"max_tokens": 40} | params))  # type: ignore[arg-type]
    request = Request(name, list(prompt), len(prompt), sampling, 0)
    scheduler.add([request], [Ending(request, [0], scheduler.max_model_len)])
    return request


def commit(scheduler: Scheduler, plan: Plan, token: int = 9, accepted: int = 0) -> list[StepOutput]:
    """The target agrees with the first `accepted` drafts of everybody; all tokens are the same."""
    right = [min(accepted, width) for width in plan.widths] + [0] * len(plan.ending)
    verdict = SimpleNamespace(
        paths=[list(range(n + 1)) for n in right], emitted=[[token] * (n + 1) for n in right], logprobs=None
    )
    return scheduler.commit(plan, list(plan.widths), verdict)  # type: ignore[arg-type]


def names(plan: Plan) -> tuple[list[str], list[tuple[str, int]]]:
    return [request.id for request in plan.ready], [(request.id, chunk) for request, chunk in plan.reading]


def test_prompts_are_read_in_chunks_next_to_decodes() -> None:
    scheduler = make(batched=8)
    add(scheduler, "a", [1] * 5)
    add(scheduler, "b", [2] * 12)
    plan = scheduler.plan()
    assert names(plan) == ([], [("a", 5), ("b", 3)])
    assert [request.id for request in plan.ending] == ["a"]
    assert [output.request.id for output in commit(scheduler, plan)] == ["a"]
    plan = scheduler.plan()
    assert names(plan) == (["a"], [("b", 5)]) and plan.widths == [2]
    commit(scheduler, plan)
    plan = scheduler.plan()
    assert names(plan) == (["a"], [("b", 4)]) and [request.id for request in plan.ending] == ["b"]
    commit(scheduler, plan)
    assert names(scheduler.plan()) == (["a", "b"], [])


def test_cached_and_lag_after_a_commit() -> None:
    scheduler = make()
    request = add(scheduler, "a", [1, 2, 3])
    commit(scheduler, scheduler.plan())
    assert (request.tokens, request.cached) == ([1, 2, 3, 9], 3)
    commit(scheduler, scheduler.plan(), accepted=1)
    assert (request.tokens, request.cached, request.lag) == ([1, 2, 3, 9, 9, 9], 5, 1)
    assert request.origins == [0, 1, 0]


def test_nothing_is_counted_past_a_stop() -> None:
    scheduler = make(k=5)
    request = add(scheduler, "a", [1], stop_token_ids=(7,))
    commit(scheduler, scheduler.plan())
    (output,) = commit(scheduler, scheduler.plan(), token=7, accepted=4)
    assert output.tokens == [7] and request.finish_reason == "stop" and request.generated == [9, 7]
    assert (request.stats.drafted, request.stats.accepted, request.stats.emitted) == (1, 1, 1)
    assert request.origins == [0, 1] and scheduler.allocator.num_free == 64


def test_an_end_at_the_bonus_token_counts_the_draft_that_it_replaced() -> None:
    scheduler = make(k=5)
    request = add(scheduler, "a", [1], max_tokens=20)
    commit(scheduler, scheduler.plan())
    commit(scheduler, scheduler.plan(), token=0)
    assert (request.stats.offered, request.stats.taken) == ([1], [0])


def test_widths_come_from_the_policy_and_the_request() -> None:
    scheduler = make(k=3)
    first, second = add(scheduler, "a", [1]), add(scheduler, "b", [2])
    second.num_speculative_tokens = 1
    commit(scheduler, scheduler.plan())
    assert scheduler.plan().widths == [3, 1]
    first.num_speculative_tokens = 0
    assert scheduler.plan().widths == [0, 1]


def test_drafts_are_narrowed_to_the_batch_and_leave_room_for_prompts() -> None:
    scheduler = make(seqs=3, batched=6, k=4)
    for name in "abc":
        add(scheduler, name, [ord(name)])
    commit(scheduler, scheduler.plan())
    assert scheduler.plan().widths == [3, 0, 0]
    add(scheduler, "d", [4] * 30)
    scheduler.abort("c")
    plan = scheduler.plan()
    assert plan.widths == [2, 0] and names(plan)[1] == [("d", 2)]


@pytest.fixture
def no_block_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "_AHEAD", 0)


def test_a_newcomer_leaves_a_block_to_those_that_run(no_block_ahead: None) -> None:
    for num_blocks, admitted in ((4, [("a", 6)]), (5, [("a", 6), ("b", 6)])):
        scheduler = make(num_blocks=num_blocks, block_size=4)
        add(scheduler, "a", [1] * 6)
        add(scheduler, "b", [2] * 6)
        assert names(scheduler.plan())[1] == admitted


def test_drafts_are_narrowed_before_anyone_is_preempted(no_block_ahead: None) -> None:
    scheduler = make(num_blocks=5, block_size=4, k=4)
    first, second = add(scheduler, "a", [1] * 6), add(scheduler, "b", [2] * 6)
    commit(scheduler, scheduler.plan())
    plan = scheduler.plan()
    assert plan.widths == [4, 1], "7 tokens and 4 drafts take the last block; the other one has room for a draft"
    commit(scheduler, plan, accepted=4)
    commit(scheduler, scheduler.plan(), accepted=4)
    assert (first.preemptions, second.preemptions) == (0, 1)
    assert second.tokens[:7] == [2] * 6 + [9] and second.row == -1 and not second.blocks


def test_the_latest_arrival_is_preempted_and_comes_back_first(no_block_ahead: None) -> None:
    scheduler = make(num_blocks=8, block_size=2, k=0)
    requests = [add(scheduler, name, [ord(name)] * 3, ignore_eos=True) for name in "abcd"]
    while not requests[2].preemptions:
        plan = scheduler.plan()
        assert plan.left == ([2] if requests[2].preemptions else [])
        commit(scheduler, plan)
    assert [request.id for request in scheduler.waiting] == ["c", "d"]
    kept = list(requests[2].tokens)
    scheduler.abort("a")
    plan = scheduler.plan()
    assert plan.left == [0]
    assert plan.reading[0][0] is requests[2] and requests[2].tokens == kept
    assert requests[2].cached > 0, "its full blocks were still in the prefix cache"


def test_blocks_ahead_keep_runs_whole_and_are_given_back_before_anyone_is_preempted() -> None:
    scheduler = make(num_blocks=8, block_size=4, k=0)
    first, second = add(scheduler, "a", [1] * 3, ignore_eos=True), add(scheduler, "b", [2] * 10, ignore_eos=True)
    commit(scheduler, scheduler.plan())
    assert (first.blocks, second.blocks) == ([0, 1, 2, 3], [4, 5, 6])
    while not second.preemptions:
        used = sum(-(-len(request.tokens) // 4) for request in scheduler.running)
        commit(scheduler, scheduler.plan())
    assert used == 9, "as long as the tokens of all fit, nobody is preempted"


def test_generated_text_is_found_in_the_prefix_cache() -> None:
    scheduler = make(k=3)
    first = add(scheduler, "a", [1, 2, 3], max_tokens=10)
    while first.finish_reason is None:
        commit(scheduler, scheduler.plan(), accepted=2)
    second = add(scheduler, "b", [*first.tokens, 5])
    scheduler.plan()
    assert (len(first.tokens), second.prefix_hit_tokens) == (13, 12)


def test_a_prompt_that_is_being_read_is_waited_for_when_it_pays() -> None:
    scheduler = make()
    head = list(range(1, 21))
    add(scheduler, "a", [*head, 30])
    same, other = add(scheduler, "b", [*head, 31]), add(scheduler, "c", [40] * 5)
    plan = scheduler.plan()
    assert names(plan)[1] == [("a", 21)]
    commit(scheduler, plan)
    assert names(scheduler.plan())[1] == [("b", 1), ("c", 5)]
    assert (same.prefix_hit_tokens, other.prefix_hit_tokens) == (20, 0)
    scheduler = make()
    add(scheduler, "a", [*head, 30])
    add(scheduler, "b", [1, 2, 3, 4] + [50] * 6)
    assert names(scheduler.plan())[1] == [("a", 21), ("b", 10)], "a short common beginning is read twice"


def test_abort_anywhere() -> None:
    scheduler = make(seqs=1)
    running, waiting = add(scheduler, "a", [1] * 9), add(scheduler, "b", [2] * 9)
    scheduler.plan()
    assert scheduler.abort("b") is waiting and scheduler.abort("a") is running
    assert scheduler.abort("a") is None and scheduler.abort("never") is None
    assert running.finish_reason == waiting.finish_reason == "abort"
    assert scheduler.allocator.num_free == 64 and not scheduler.has_unfinished
    assert scheduler.plan().left == [0]


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="at least max_num_seqs"):
        make(seqs=8, batched=7)
    with pytest.raises(UserError, match="raise num_blocks"):
        Scheduler(
            BlockAllocator(3, 4), max_num_seqs=1, max_num_batched_tokens=8, max_model_len=13, policy=FixedWidth(0)
        )


def test_two_requests_cannot_have_one_id_and_none_of_them_is_queued() -> None:
    scheduler = make()
    add(scheduler, "a/1", [1])
    requests = [Request(f"a/{i}", [1], 1, SamplingParams(), 0) for i in range(2)]
    with pytest.raises(UserError, match="own id"):
        scheduler.add(requests, [Ending(request, [], 10) for request in requests])
    assert len(scheduler.waiting) == 1
