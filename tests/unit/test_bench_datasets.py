"""Datasets as they come: every format, read as far as needed, and every bad line named by its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import TEMPLATE, tiny_tokenizer
from paceline.assets import heldout_prompts
from paceline.bench import datasets, json_stream
from paceline.bench.datasets import Prompt, read_dataset
from paceline.bench.json_stream import entries
from paceline.bench.workload import Workload, fitted, make_jobs
from paceline.errors import UserError
from paceline.request import SamplingParams
from paceline.tokenizer import Tokenizer

ASK = [{"role": "user", "content": "hi"}]
SHARE = {"id": "s1", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer(), {"bos_token": "<|bos|>"}, (), TEMPLATE)


def test_held_out_prompts_and_their_sources() -> None:
    found = read_dataset("heldout", 300)
    assert [p.name for p in found] == [p.id for p in heldout_prompts()]
    wordnet = read_dataset("heldout", 5, "wordnet")
    assert {p.source for p in wordnet} == {"wordnet"} and len(wordnet) == 5
    with pytest.raises(UserError, match=r"no source 'nope'.*wordnet"):
        read_dataset("heldout", 5, "nope")


FILES: list[tuple[str, str, list[Prompt]]] = [
    ("a.txt", "one\n\ntwo\r\n", [Prompt("one", "a/1", "a"), Prompt("two", "a/3", "a")]),
    ("a.json", json.dumps([SHARE, SHARE]), [Prompt(ASK, "s1", "a")] * 2),
    ("a.JSONL", json.dumps(SHARE), [Prompt(ASK, "s1", "a")]),
    ("a.jsonl", '\ufeff{"prompt": "hi"}\n\n{"messages": [{"role": "user", "content": "hi"}], "source": "x"}\n',
     [Prompt("hi", "1", "a"), Prompt(ASK, "3", "x")]),
    ("question.jsonl", '{"question_id": 81, "category": "writing", "turns": ["hi", "more"]}',
     [Prompt(ASK, "81", "writing", ("more",))]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), FILES, ids=[name for name, *_ in FILES])
def test_files_of_every_kind(tmp_path: Path, name: str, content: str, expected: list[Prompt]) -> None:
    (tmp_path / name).write_text(content)
    assert read_dataset(str(tmp_path / name), 10) == expected


@pytest.mark.parametrize(
    "row",
    [
        "[" * 100_000, '{"prompt": ', '{"prompt": 3}', '{"prompt": " "}', "[]", "3", "{}", '{"turns": []}',
        '{"turns": "a"}', '{"turns": [1]}', '{"messages": []}', '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": 1, "content": 2}]}',
        '{"conversations": {}}', '{"conversations": [{}]}', '{"conversations": [{"value": ""}]}',
    ],
)  # fmt: skip
def test_a_bad_line_or_entry_is_named(tmp_path: Path, row: str) -> None:
    lines, listed = tmp_path / "x.jsonl", tmp_path / "x.json"
    lines.write_text('{"prompt": "fine"}\n' + row + "\n")
    listed.write_text(f'[{{"prompt": "fine"}}, {row}]')
    for path in (lines, listed):
        with pytest.raises(UserError, match=f"{path}:2: .*[.;]") as found:
            read_dataset(str(path), 10)
        assert "\n" not in str(found.value)
        assert len(read_dataset(str(path), 1)) == 1  # nobody needs the second one


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b""), ("a.txt", b"\n \n"), ("a.json", b"[]"), ("a.json", b""), ("a.json", b"{}"),
     ("a.json", b'[{"prompt": "a"}'), ("a.jsonl", b"\xff\xfe"), ("a.json", b"\xff\xfe"), ("a.txt", b"\xc3")],
)  # fmt: skip
def test_a_file_without_prompts_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / name)):
        read_dataset(str(tmp_path / name), 10)
    with pytest.raises(UserError, match="no dataset"):
        read_dataset(str(tmp_path / "absent"), 10)


def test_a_line_is_not_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (datasets, json_stream):
        monkeypatch.setattr(module, "MAX_ENTRY", 50)
    for name, text in (("a.txt", "x" * 51), ("a.json", '["' + "x" * 100)):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}:1: "):
            read_dataset(str(tmp_path / name), 1)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=4
)


@given(st.lists(st.dictionaries(st.text(), VALUES)), st.integers(1, 40), st.sampled_from([None, 2]))
def test_a_list_in_pieces_is_the_list(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], piece: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("stream") / "a.json"
    path.write_text(json.dumps(rows, indent=indent))
    assert [row for _, row in entries(path, piece)] == rows


def test_no_more_is_read_than_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "a"}, {"prompt": "b"}, ' + " " * 100 + "nonsense")
    reading = entries(path, 20)
    assert [next(reading)[1], next(reading)[1]] == [{"prompt": "a"}, {"prompt": "b"}]


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 30))
def test_fitted_prompts_have_the_length_and_their_own_end(prompts: list[list[int]], length: int) -> None:
    for before, after in zip(prompts, fitted(prompts, length), strict=True):
        own = min(length, len(before))
        assert len(after) == length and after[-own:] == before[-own:]


def test_what_stands_before_a_short_prompt() -> None:
    assert fitted([[1, 2], [3, 4, 5]], 4) == [[4, 5, 1, 2], [2, 3, 4, 5]]
    assert fitted([[1, 2]], 5) == [[2, 1, 2, 1, 2]]


def test_requests_are_repeatable(tokenizer: Tokenizer) -> None:
    params = SamplingParams(max_tokens=8, temperature=0.5)
    for name in ("heldout", "random"):
        one, other, longer = (make_jobs(Workload(name, params, 7), count, tokenizer, 4000) for count in (5, 5, 9))
        assert one == other == longer[:5] and [job.params.seed for job in one] == [7, 8, 9, 10, 11]
    assert make_jobs(Workload("random", params, 8), 1, tokenizer, 4000)[0].prompt != one[0].prompt
    assert not {i for job in one for i in job.prompt} & tokenizer.special_ids
    assert [len(job.prompt) for job in make_jobs(Workload("random", params, 8, 33), 2, tokenizer, 41)] == [33, 33]


def test_lengths_beyond_the_context_are_refused(tokenizer: Tokenizer) -> None:
    for work in (Workload("random", SamplingParams(max_tokens=8), 0, 33), Workload("heldout", SamplingParams(), 0)):
        with pytest.raises(UserError, match=r"context holds 40: lower --input-len or --output-len\.$"):
            make_jobs(work, 3, tokenizer, 40)


def test_few_prompts_come_again_with_other_seeds(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text("one\ntwo\n")
    jobs = make_jobs(Workload(str(path), SamplingParams(max_tokens=1), 0), 5, tokenizer, 100)
    assert [job.name for job in jobs] == ["two/1", "two/2", "two/1", "two/2", "two/1"]
    assert [job.params.seed for job in jobs] == [0, 1, 2, 3, 4]
