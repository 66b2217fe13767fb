"""The tokenizer that we train: every text comes back, and transformers reads it as we do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import UserError
from paceline.tokenizer import Tokenizer
from paceline.tokenizer_training import MIN_VOCAB_SIZE, SPECIAL_TOKENS, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over 12 lazy dogs.\n\nIt costs 1234 €.",
    "日本語 and été, été 🙂",
    "    indented\r\n\tcode",
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 17 + 25?\n"},
    {"role": "assistant", "content": " 42 🙂"},
]
VOCAB_SIZE = MIN_VOCAB_SIZE + 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 3, VOCAB_SIZE, path, context=512)
    return path


@pytest.fixture(scope="module")
def ours(directory: Path) -> Tokenizer:
    return Tokenizer.from_dir(directory)


def test_special_tokens_come_first(ours: Tokenizer) -> None:
    assert [ours.token_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert ours.special_ids == {0, 1, 2, 3, 4} and ours.vocab_size == VOCAB_SIZE
    assert ours.eos_ids == {4}


@given(st.text(max_size=60) | st.lists(st.sampled_from([*TEXTS, "\n", "\r\n", " ", "7", "\x00"])).map("".join))
@settings(deadline=None)
def test_every_text_comes_back(ours: Tokenizer, text: str) -> None:
    assert ours.decode(ours.encode(text), skip_special_tokens=False) == text


@given(st.text(alphabet="0123456789 ", max_size=30))
@settings(deadline=None)
def test_digits_stand_alone(ours: Tokenizer, text: str) -> None:
    pieces = [ours.token(i) for i in ours.encode(text)]
    assert all(len(piece) == 1 for piece in pieces if any(c.isdigit() for c in piece))


def test_merges_are_learnt(ours: Tokenizer) -> None:
    assert len(ours.encode(TEXTS[0])) < len(TEXTS[0].encode())


def test_a_conversation_is_what_the_template_says(ours: Tokenizer) -> None:
    ids = ours.apply_chat_template(CHAT, add_generation_prompt=True)
    turns = [[1, *ours.encode("Be brief."), 4], [2, *ours.encode(CHAT[1]["content"]), 4]]
    assert ids == [*turns[0], *turns[1], 3, *ours.encode(" 42 🙂"), 4, 3]
    with pytest.raises(UserError, match="role must be system, user or assistant"):
        ours.apply_chat_template([{"role": "tool", "content": ""}])


def test_transformers_reads_the_same(directory: Path, ours: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(directory))
    assert theirs.model_max_length == 512 and (theirs.eos_token_id, theirs.pad_token_id) == (4, 0)
    for text in [*TEXTS, "<|user|> hi<|end|>"]:
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(theirs(text)["input_ids"]) == text
    for prompt in (False, True):
        found = theirs.apply_chat_template(CHAT, add_generation_prompt=prompt, return_dict=False)
        assert found == ours.apply_chat_template(CHAT, add_generation_prompt=prompt)


def test_training_is_deterministic(directory: Path, tmp_path: Path) -> None:
    train_tokenizer(iter(TEXTS * 3), VOCAB_SIZE, tmp_path, context=512)
    assert (tmp_path / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(MIN_VOCAB_SIZE)):
        train_tokenizer(TEXTS, MIN_VOCAB_SIZE - 1, tmp_path / "new")
    assert not (tmp_path / "new").exists()
