"""What holds for every drafter in the folder: well-formed proposals, whatever it is asked and whatever leaves."""

from __future__ import annotations

import random

import pytest

from paceline.config import EngineConfig
from paceline.drafters import build_drafter, drafter_names
from paceline.drafters.base import Drafter
from paceline.drafters.several import SeveralDrafters
from paceline.errors import UserError
from paceline.request import Request, SamplingParams
from paceline.spec.proposal import Proposal

# These draft with a model: they are built upon a target in tests of their own.
NEED_A_MODEL = {"mtp"}
VOCAB, WIDTH = 7, 4

ALONE = sorted(set(drafter_names()) - NEED_A_MODEL)

pytestmark = pytest.mark.parametrize("name", [*ALONE, ",".join(ALONE)])


def build(name: str) -> Drafter:
    if "," in name:
        return SeveralDrafters([build(member) for member in name.split(",")])
    return build_drafter(name, EngineConfig(drafter=name, num_speculative_tokens=WIDTH, ngram_min=1), None)


def make_requests(count: int, rng: random.Random) -> list[Request]:
    return [
        Request(
            f"{rng.random()}",
            [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 40))],
            1,
            SamplingParams(),
            0,
            row=r,
            drafter=rng.choice((None, *ALONE)),
        )
        for r in range(count)
    ]


def assert_well_formed(proposal: Proposal, requests: list[Request], widths: list[int], most: int) -> None:
    assert len(proposal.tokens) == len(requests)
    for r, (request, nodes) in enumerate(zip(requests, proposal.tokens, strict=True)):
        assert 1 <= len(nodes) <= 1 + min(widths[r], most)
        assert nodes[0] == request.tokens[-1] and all(type(token) is int and 0 <= token < VOCAB for token in nodes)
        above = range(-1, len(nodes) - 1) if proposal.parents is None else proposal.parents[r]
        assert above[0] == -1 and len(above) == len(nodes)
        assert all(0 <= above[node] < node for node in range(1, len(nodes)))


def test_proposals_are_well_formed_while_requests_come_grow_and_go(name: str) -> None:
    rng = random.Random(name)
    drafter = build(name)
    requests = make_requests(4, rng)
    for _ in range(30):
        asked = rng.sample(requests, rng.randrange(len(requests) + 1))
        widths = [rng.randrange(WIDTH + 2) for _ in asked]
        assert_well_formed(drafter.propose(asked, widths), asked, widths, drafter.max_tokens)
        for request in asked:
            request.tokens.extend(rng.randrange(VOCAB) for _ in range(rng.randrange(1, 4)))
        if rng.random() < 0.3:
            leaver = rng.randrange(len(requests))
            drafter.forget(leaver)
            requests[leaver] = make_requests(leaver + 1, rng)[leaver]


def test_width_zero_is_the_root_alone(name: str) -> None:
    requests = make_requests(3, random.Random(0))
    assert build(name).propose(requests, [0, 0, 0]).counts == [1, 1, 1]


def test_it_is_known_by_its_own_name(name: str) -> None:
    drafter = build(name)
    assert drafter.name == name
    assert 0 <= drafter.max_tokens <= WIDTH


def test_forgetting_an_empty_row_is_no_error(name: str) -> None:
    build(name).forget(3)


def test_an_unknown_name_is_refused_and_this_one_is_offered(name: str) -> None:
    last = name.split(",")[-1]
    with pytest.raises(UserError, match=rf"'{last}x' is not known; use one of .*\b{last}\b"):
        build(name + "x")
