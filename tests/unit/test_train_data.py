"""Training data: what a line may be, which tokens are answers, and how documents share rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from train_tools import corpus, packed

from paceline.errors import UserError
from paceline.train.corpus import Corpus, Marks, answer_mask
from paceline.train.examples import Example, jsonl_files, read_examples
from paceline.train.packing import PADDING, pack

MARKS = Marks(end_of_text=0, end_of_turn=4, roles={"system": 1, "user": 2, "assistant": 3})

# A document is a plain text (its length), or a conversation (role and length of each turn).
TURN = st.tuples(st.sampled_from(["system", "user", "assistant"]), st.integers(0, 4))
DOCUMENTS = st.lists(st.integers(0, 5) | st.lists(TURN, min_size=1, max_size=4), min_size=1, max_size=6)


def test_examples_are_read_in_order(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "\u2028é"}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": messages}) + "\n\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two", "more": 1}\n')
    found = list(read_examples(jsonl_files([tmp_path])))
    assert found == [Example("a", text="one"), Example("a", text="two"), Example("b", messages=messages)]
    assert [list(example.texts()) for example in found] == [["one"], ["two"], ["hi", "\u2028é"]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": ', "JSON"),
        (b'{"text": "\xff"}', "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'["text"]', "neither"),
        (b"{}", "neither"),
        (b'{"text": 3}', "neither"),
        (b'{"text": ""}', "neither"),
        (b'{"messages": []}', "neither"),
        (b'{"messages": [{"role": "user"}]}', "neither"),
        (b'{"messages": [{"role": "tool", "content": "x"}]}', "'tool'"),
        (b'{"text": "\\ud800"}', "Unicode"),
        (b'{"messages": [{"role": "user", "content": "\\udc00"}]}', "Unicode"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_unreadable_line_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=f"^{path}:3 ") as error:
        list(read_examples([path]))
    assert said in str(error.value)


def test_answer_mask_by_hand() -> None:
    """<user> hi <end> <assistant> hello <end>, then a plain text and its end."""
    tokens = torch.tensor([2, 9, 4, 3, 8, 4, 7, 7, 0], dtype=torch.int32)
    mask = answer_mask(tokens, torch.tensor([6, 9]), MARKS)
    assert mask.int().tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_answer_mask_of_odd_texts() -> None:
    """An author who spells marks speaks as they say: his 7, <user> 7; and <assistant> 8 <end>, then nobody's 9."""
    tokens = torch.tensor([7, 2, 7, 0, 3, 8, 4, 9], dtype=torch.int32)
    assert answer_mask(tokens, torch.tensor([4, 8]), MARKS).int().tolist() == [1, 0, 0, 0, 0, 1, 1, 0]
    tokens = torch.tensor([7, 3, 2, 8, 0], dtype=torch.int32)
    assert answer_mask(tokens, torch.tensor([5]), MARKS).int().tolist() == [1, 0, 0, 0, 0]


@given(DOCUMENTS)
@settings(deadline=None)
def test_answers_are_what_the_assistant_and_authors_wrote(documents: list[int | list[tuple[str, int]]]) -> None:
    tokens: list[int] = []
    wanted: list[bool] = []
    ends: list[int] = []
    for document in documents:
        if isinstance(document, int):
            tokens += [9] * document + [MARKS.end_of_text]
            wanted += [True] * (document + 1)
        else:
            for role, length in document:
                tokens += [MARKS.roles[role], *[9] * length, MARKS.end_of_turn]
                wanted += [False, *[role == "assistant"] * (length + 1)]
        ends.append(len(tokens))
    assert answer_mask(torch.tensor(tokens, dtype=torch.int32), torch.tensor(ends), MARKS).tolist() == wanted


def numbered(lengths: list[int]) -> Corpus:
    """Every token is its own place in the corpus, so that a batch tells where each of its tokens is from."""
    text = corpus(lengths)
    return Corpus(torch.arange(len(text.tokens), dtype=torch.int32), text.answers, text.ends, text.sources, text.names)


@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=30),
    length=st.integers(8, 16),
    times=st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.3]),
    seed=st.integers(0, 3),
)
@settings(deadline=None)
def test_packing_keeps_documents_whole_and_counts_them(
    lengths: list[int], length: int, times: float, seed: int
) -> None:
    assume(times or len(lengths) > 1)
    text = numbered(lengths)
    data = pack(text, length, seed, repeat={"a": times})
    batch = data.batch(range(len(data)))
    seen: Counter[int] = Counter()
    of_source = data.sources(range(len(data)))
    starts = [0, *text.ends.tolist()[:-1]]
    document_of = [n for n, size in enumerate(lengths) for _ in range(size)]
    for r in range(len(data)):
        for number in set(batch.documents[r].tolist()) - {PADDING}:
            there = (batch.documents[r] == number).nonzero().squeeze(1)
            places = batch.tokens[r, there]
            assert torch.equal(there, torch.arange(there[0], there[0] + len(there))), "one piece, side by side"
            assert torch.equal(places, torch.arange(places[0], places[0] + len(places))), "in order"
            assert torch.equal(batch.positions[r, there], torch.arange(len(there))), "positions begin at 0"
            home = document_of[places[0]]
            assert document_of[places[-1]] == home, "of one document"
            assert (int(places[0]) - starts[home]) % length == 0 and of_source[r, there].unique().tolist() == [home % 2]
            seen.update(places.tolist())
    for n, (start, size) in enumerate(zip(starts, lengths, strict=True)):
        counts = {seen[place] for place in range(start, start + size)}
        assert len(counts) == 1, "all of a document comes equally often"
        count = counts.pop()
        assert count == 1 if n % 2 else int(times) <= count <= -(-times // 1)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=40))
@settings(deadline=None)
def test_packing_wastes_little(lengths: list[int]) -> None:
    """Two rows that together would fit in one are never both left: at most one row is less than half full."""
    data = pack(corpus(lengths), 12, 0)
    filled = [sum(end - start for start, end in row) for row in data.packed]
    assert sum(2 * n <= 12 for n in filled) <= 1


def test_fractions_of_a_repeat_are_met_on_average() -> None:
    data = pack(corpus([4] * 2000), 8, 0, repeat={"a": 1.5})
    assert sum(map(len, data.packed)) == pytest.approx(1000 + 1500, abs=60)


def test_a_batch_depends_on_the_step_alone() -> None:
    one, other = packed(), packed()
    expected = [one.step(step, 4) for step in range(12)]
    for step in (11, 0, 7, 3):
        for found, wanted in zip(other.step(step, 4)._parts(), expected[step]._parts(), strict=True):
            assert torch.equal(found, wanted)


def test_an_epoch_deals_every_row_once_in_its_own_order() -> None:
    data = pack(numbered([8] * 12), 8, 3)
    epochs = [[data.step(step, 3).tokens[:, 0].tolist() for step in range(e, e + 4)] for e in (0, 4)]
    flat = [[row for step in epoch for row in step] for epoch in epochs]
    assert sorted(flat[0]) == sorted(flat[1]) == [8 * n for n in range(12)] and flat[0] != flat[1]


def test_counted_is_everything_or_the_answers() -> None:
    everything, answers = packed(), packed(answers_only=True)
    rows = range(len(everything))
    a, b = everything.batch(rows), answers.batch(rows)
    assert torch.equal(a.counted, a.documents != PADDING)
    assert 0 < b.counted.sum() < a.counted.sum() and not (b.counted & ~a.counted).any()


def test_the_fingerprint_tells_data_apart() -> None:
    different = [packed(), packed(repeat={"a": 2}), packed(repeat={"b": 2})]
    prints = [data.fingerprint for data in different]
    assert len(set(prints)) == 3 and packed().fingerprint == packed(answers_only=True).fingerprint == prints[0]


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(UserError, match=r"'c'.*a, b"):
        packed(repeat={"c": 2})
    with pytest.raises(UserError, match="no document"):
        packed(repeat={"a": 0, "b": 0})
