"""Requests as tensors: slots, positions, masks, wanted rows, and what the drafter may see afterwards."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.batch import Row, make_batch
from paceline.engine.assemble import accepted_slots, assemble, offered, seen
from paceline.engine.plan import Plan
from paceline.engine.stats import EngineStats
from paceline.request import Request, SamplingParams
from paceline.spec.proposal import Proposal, Verdict


def request(name: str, tokens: list[int], cached: int, blocks: list[int], row: int = 0) -> Request:
    return Request(name, tokens, len(tokens), SamplingParams(), 0, cached=cached, blocks=blocks, row=row)


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 7), st.permutations(range(20))).filter(lambda row: row[1]),
        min_size=1,
    ),
    st.integers(1, 4),
    st.integers(0, 2),
)
def test_a_slot_is_its_places_block_and_offset(
    drawn: list[tuple[int, int, list[int]]], block_size: int, first: int
) -> None:
    rows = [Row([100 * r + j for j in range(count)], place, blocks) for r, (place, count, blocks) in enumerate(drawn)]
    batch = make_batch(rows, block_size, first=first)
    for r, (tokens, place, blocks, _) in enumerate(rows):
        mine = slice(batch.starts[r], batch.starts[r + 1])
        places = range(place, place + len(tokens))
        assert batch.tokens[mine].tolist() == tokens
        assert batch.slots[mine].tolist() == [blocks[p // block_size] * block_size + p % block_size for p in places]
        assert batch.positions[mine].tolist() == [p - first for p in places]
        assert batch.take[r] == batch.starts[r + 1] - 1
    assert batch.context == [place for place, _, _ in drawn]
    assert batch.tree is None and batch.first == [first] * len(rows)


def test_nodes_then_chunks_and_the_rows_whose_logits_are_wanted() -> None:
    ready = request("a", [1, 2, 3], 2, [5])
    ending, reading = request("b", [4, 5, 6], 0, [0], row=1), request("c", [7, 8, 9], 1, [1], row=2)
    plan = Plan([ready], [2], [(reading, 1), (ending, 3)], [])
    proposal = Proposal([[3, 11]]).join([6])
    batch = assemble(plan, proposal, 4)
    assert batch.tokens.tolist() == [3, 11, 8, 4, 5, 6]
    assert batch.slots.tolist() == [22, 23, 5, 0, 1, 2]
    assert batch.take.tolist() == [0, 1, 5]
    assert (plan.verified, plan.requests, plan.rows) == ([ready, ending], [ready, reading, ending], [0, 2, 1])
    assert offered(plan, proposal) == [1]


def test_a_tree_has_depths_masks_and_slots_to_move() -> None:
    """Nodes: 0 - 1, 0 - 2 - 3; nodes 2 and 3 are accepted and belong where nodes 1 and 2 lie."""
    ready, reading = request("a", [9], 0, [2]), request("b", [7, 8, 9], 0, [1], row=1)
    plan = Plan([ready], [3], [(reading, 2)], [])
    proposal = Proposal([[9, 1, 2, 3]], [[-1, 0, 0, 2]])
    batch = assemble(plan, proposal, 4)
    assert batch.tree is not None
    assert batch.tree.tolist() == [0b1, 0b11, 0b101, 0b1101, -1, -1]
    assert batch.positions.tolist() == [0, 1, 1, 2, 0, 1]
    assert batch.slots.tolist() == [8, 9, 10, 11, 4, 5]
    assert offered(plan, proposal) == [2]
    verdict = Verdict([[0, 2, 3]], [[2, 3, 5]])
    source, target = accepted_slots(batch, verdict)
    assert (source.tolist(), target.tolist()) == ([10, 11], [9, 10])
    ready.tokens += [2, 3]  # cut before the bonus token
    ready.cached, reading.cached = 2, 2
    told = seen(plan, batch, torch.arange(6)[:, None], verdict)
    assert torch.cat(told.states).flatten().tolist() == [0, 2, 4, 5]
    assert (told.first, told.count, told.rows) == ([0, 0], [2, 2], [0, 1])


def test_accepted_parts_of_chains_are_seen() -> None:
    first, second = request("a", [1], 0, [0]), request("b", [2], 0, [1], row=1)
    plan = Plan([first, second], [2, 2], [], [])
    batch = assemble(plan, Proposal([[1, 5, 5], [2, 6, 6]]), 4)
    first.cached, second.cached = 3, 1
    told = seen(plan, batch, torch.arange(6)[:, None], Verdict([[0, 1, 2], [0]], [[5, 5, 5], [7]]))
    assert torch.cat(told.states).flatten().tolist() == [0, 1, 2, 3]


def test_a_cut_leaves_the_first_drafts() -> None:
    cut = Proposal([[1, 2, 3], [4, 5]], log_q=[torch.zeros(3, 2), None]).cut([1, 0])
    assert cut.tokens == [[1, 2], [4]] and cut.log_q is not None
    assert cut.log_q[0] is not None and cut.log_q[0].shape == (2, 2) and cut.log_q[1] is None


def test_joined_roots_have_no_drafts() -> None:
    proposal = Proposal([[1, 2]], log_q=[torch.full((2, 3), -1.0)]).join([8, 9])
    assert proposal.tokens == [[1, 2], [8], [9]]
    assert proposal.counts == [2, 1, 1] and proposal.chain
    assert proposal.log_q is not None and [part is None for part in proposal.log_q] == [False, True, True]
    assert Proposal([[1, 2, 3]], [[-1, 0, 0]]).join([8]).parents == [[-1, 0, 0], [-1]]
    nobody = Proposal([])
    assert nobody.join([]) is nobody
    assert nobody.join([4]).tokens == [[4]]


def test_stats_tell_the_hosts_share() -> None:
    stats = EngineStats()
    assert stats.host_share == 0
    stats.start()
    stats.lap("target")
    stats.seconds.update(target=3.0, draft=1.0, verify=1.0)
    stats.count_step(read=5, emitted=2)
    assert abs(stats.host_share - 0.2) < 1e-3
    plain = stats.as_dict()
    assert (plain["steps"], plain["read"], plain["emitted"]) == (1, 5, 2)
    assert plain["speculation"]["drafted"] == 0
