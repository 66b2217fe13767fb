"""Prompt lookup against its definition by brute force."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.drafters.ngram import NgramDrafter
from paceline.request import Request, SamplingParams


def look_up(tokens: list[int], ngram_min: int, ngram_max: int, width: int) -> list[int]:
    """The definition: longest n first, earliest place first, something must follow."""
    for n in range(ngram_max, ngram_min - 1, -1):
        for start in range(len(tokens) - n):
            if tokens[start : start + n] == tokens[-n:]:
                return tokens[start + n : start + n + width]
    return []


def make_request(name: str, tokens: list[int], row: int = 0) -> Request:
    return Request(name, tokens, len(tokens), SamplingParams(), 0, row=row)


def drafts(drafter: NgramDrafter, request: Request, width: int) -> list[int]:
    proposal = drafter.propose([request], [width])
    (tokens,) = proposal.tokens
    assert tokens[0] == request.tokens[-1]
    return tokens[1:]


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    growth=st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=5), st.integers(0, 5), st.booleans()), max_size=8),
    ngram_min=st.integers(1, 3),
    more=st.integers(0, 2),
)
def test_index_grown_step_by_step_equals_brute_force(
    prompt: list[int], growth: list[tuple[list[int], int, bool]], ngram_min: int, more: int
) -> None:
    """Whatever is committed, however wide, and with the row given up and taken again (preemption) at any time."""
    drafter = NgramDrafter(ngram_min, ngram_min + more, max_tokens=4)
    request = make_request("a", list(prompt))
    for committed, width, preempted in growth:
        request.tokens.extend(committed)
        if preempted:
            drafter.forget(request.row)
            request.row += 1
        expected = look_up(request.tokens, ngram_min, ngram_min + more, min(width, 4))
        assert drafts(drafter, request, width) == expected


def test_the_longest_ngram_wins_over_an_earlier_shorter_one() -> None:
    drafter = NgramDrafter(1, 3, max_tokens=2)
    assert drafts(drafter, make_request("a", [3, 9, 9, 1, 2, 3, 4, 5, 1, 2, 3]), 2) == [4, 5]
    assert drafts(NgramDrafter(1, 1, 2), make_request("a", [3, 9, 9, 1, 2, 3, 4, 5, 1, 2, 3]), 2) == [9, 9]


def test_the_prompt_comes_before_the_generated_text() -> None:
    request = make_request("a", [1, 2, 7])
    request.tokens += [1, 2, 8, 1, 2]
    assert drafts(NgramDrafter(2, 2, 1), request, 1) == [7]


def test_a_row_given_to_another_request_starts_anew() -> None:
    drafter = NgramDrafter(1, 2, max_tokens=3)
    assert drafts(drafter, make_request("a", [1, 2, 1]), 3) == [2, 1]
    assert drafts(drafter, make_request("b", [5, 4, 3, 1]), 3) == []


def test_a_step_does_not_read_the_context_again() -> None:
    """After the first lookup, work per step is bounded by what was committed, not by the length of the text."""

    class Counting(list[int]):
        read = 0

        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            got = super().__getitem__(key)
            Counting.read += len(got) if isinstance(key, slice) else 1
            return got

    drafter, request = NgramDrafter(2, 4, 3), make_request("a", Counting(i * i % 97 for i in range(5000)))
    drafts(drafter, request, 3)
    Counting.read = 0
    for token in range(10):
        request.tokens.append(token)
        drafts(drafter, request, 3)
    assert Counting.read < 10 * 40
