"""PaddleNLP's data files: what a line of one becomes, and which lines are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.compat import data_file
from paceline.compat.data_file import Example, read_examples
from paceline.errors import UserError


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_texts_and_turns(tmp_path: Path) -> None:
    rows = [
        {"src": "a", "tgt": "b"},
        {"src": "a"},
        {"src": ["a", "c"], "tgt": ["b"]},
        {"src": ["a", "c"], "tgt": ["b", "d"]},
        {"src": ["a"], "tgt": []},
    ]
    found = read_examples(write(tmp_path / "data.json", *rows))
    assert [(e.turns, e.expected) for e in found] == [
        (["a"], "b"), (["a"], ""), (["a", "b", "c"], ""), (["a", "b", "c"], "d"), (["a"], ""),
    ]  # fmt: skip
    assert [(e.src, e.tgt) for e in found] == [(row["src"], row.get("tgt", "")) for row in rows]
    assert found[2].messages() == [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
    ]  # fmt: skip


def test_files_as_other_systems_write_them(tmp_path: Path) -> None:
    """A byte order mark and carriage returns are no part of a question; U+2028 ends no line."""
    plain, structured = tmp_path / "a.txt", tmp_path / "b.JSONL"
    plain.write_bytes(b"\xef\xbb\xbfone\r\n\r\n" + "two\u2028three\r\n".encode())
    assert [e.question for e in read_examples(plain)] == ["one", "two\u2028three"]
    structured.write_bytes(b'\xef\xbb\xbf{"src": "one"}\r\n\r\n{"src": "two"}')
    assert [e.question for e in read_examples(structured)] == ["one", "two"]


def test_what_is_no_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty, binary = write(tmp_path / "empty.json"), tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe")
    for path, said in ((empty, "holds no prompt"), (binary, "as UTF-8 text"), (tmp_path, "cannot be read")):
        with pytest.raises(UserError, match=said):
            read_examples(path)
    monkeypatch.setattr(data_file, "MAX_DATA_BYTES", 3)
    with pytest.raises(UserError, match="larger than 3 bytes"):
        read_examples(write(tmp_path / "large.json", {"src": "a"}))


TEXT = st.sampled_from(["", " ", "\n", "a", "b c"])
TEXTS = TEXT | st.none() | st.just(3) | st.lists(TEXT | st.none(), max_size=3)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["src", "tgt", "other"]), TEXTS))
def test_any_row_is_read_or_refused(row: dict[str, Any]) -> None:
    try:
        example = data_file._parse(json.dumps(row), "file:1")
    except UserError as error:
        assert str(error).startswith("file:1: ")
        return
    assert isinstance(example, Example) and len(example.turns) % 2 == 1
    assert all(isinstance(turn, str) and turn.strip() for turn in example.turns)
