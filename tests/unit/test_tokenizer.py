"""The tokenizer against the library's own answers, and the incremental decoder against decoding at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from paceline.errors import UserError
from paceline.tokenizer import IncrementalDecoder, Tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'fool' %}{{ raise_exception('no fools') }}{% endif %}\n"
    "<|{{ m.role }}|>{% generation %}{{ m.content | trim }}{% endgeneration %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SETTINGS = {"bos_token": {"content": "<|bos|>"}, "eos_token": "<|end|>", "chat_template": TEMPLATE}


def byte_level() -> Backend:
    """A byte-level BPE with merges that cut through multi-byte characters."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"],
    )  # fmt: skip
    backend.train_from_iterator(["the cat says hello, the dog says 日本語日本 and été été 🙂🙃🙂🙃"] * 3, trainer)
    return backend


def metaspace() -> Backend:
    """A SentencePiece-like tokenizer with byte fallback: the first token's space is not part of the text."""
    vocab = [("<unk>", 0.0)] + [(f"<0x{b:02X}>", -9.0) for b in range(256)]
    vocab += [("▁", -2.0), ("▁the", -1.0), ("▁cat", -1.0), ("s", -1.5), ("é", -2.0)]
    backend = Backend(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


BYTES = Tokenizer(byte_level(), SETTINGS, template=TEMPLATE)
PIECES = Tokenizer(metaspace())


def pieces(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    """`ids` pushed in groups of the sizes `cuts` (repeated), then flushed."""
    decoder, out, at = IncrementalDecoder(tokenizer), [], 0
    for size in cuts * len(ids):
        out.append(decoder.push(ids[at : at + size]))
        at += size
    out.append(decoder.flush())
    return out


@given(st.text(), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_increments_of_text_concatenate_to_the_text(text: str, cuts: list[int]) -> None:
    assert "".join(pieces(BYTES, BYTES.encode(text), cuts)) == text


@given(st.lists(st.integers(0, BYTES.vocab_size - 1)), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_increments_of_any_ids_concatenate_to_decode(ids: list[int], cuts: list[int]) -> None:
    assert "".join(pieces(BYTES, ids, cuts)) == BYTES.decode(ids)


@given(st.text())
def test_no_increment_holds_half_a_character(text: str) -> None:
    text = text.replace("\ufffd", "")
    assert not any("\ufffd" in piece for piece in pieces(BYTES, BYTES.encode(text), [1]))


@given(st.text(alphabet="thecats é日🙂 ", max_size=30), st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_increments_with_spaces_on_tokens_and_byte_fallback(text: str, cuts: list[int]) -> None:
    ids = PIECES.encode(text)
    assert "".join(pieces(PIECES, ids, cuts)) == PIECES.decode(ids)


def test_half_a_character_waits_for_the_other_half() -> None:
    decoder = IncrementalDecoder(BYTES)
    halves = BYTES.encode("ß")
    assert len(halves) == 2
    assert decoder.push(halves[:1]) == ""
    assert decoder.push(halves[1:]) == "ß"
    assert decoder.push(halves[:1]) == ""
    assert decoder.flush() == "\ufffd"


def test_a_push_costs_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, longest = IncrementalDecoder(BYTES), 0
    decode = BYTES.decode

    def spy(ids: list[int], **options: bool) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids, **options)

    monkeypatch.setattr(BYTES, "decode", spy)
    for token in BYTES.encode("the cat says 日本語 🙂 " * 50):
        decoder.push([token])
    assert longest <= 9  # two characters of at most four tokens each


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    ids = BYTES.encode("<|user|>hello<|end|>")
    assert BYTES.decode(ids) == "hello"
    assert "".join(pieces(BYTES, ids, [1])) == "hello"
    assert BYTES.decode(ids, skip_special_tokens=False) == "<|user|>hello<|end|>"
    kept = IncrementalDecoder(BYTES, skip_special_tokens=False)
    assert kept.push(ids) + kept.flush() == "<|user|>hello<|end|>"


def test_chat_template_becomes_the_ids_of_its_text() -> None:
    messages = [{"role": "user", "content": " hello "}]
    assert BYTES.render_chat(messages) == "<|bos|><|user|>hello<|end|>\n<|assistant|>"
    assert BYTES.apply_chat_template(messages, add_generation_prompt=False) == BYTES.encode(
        "<|bos|><|user|>hello<|end|>\n"
    )


def test_chat_template_equals_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<|bos|>", eos_token="<|end|>", chat_template=TEMPLATE
    )
    oracle.save_pretrained(tmp_path)
    ours = Tokenizer.from_dir(tmp_path)
    messages = [{"role": "user", "content": "été 🙂"}, {"role": "assistant", "content": "the cat"}]
    for prompt in (True, False):
        expected = oracle.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        assert ours.apply_chat_template(messages, add_generation_prompt=prompt) == expected
    assert ours.encode("the cat") == oracle("the cat").input_ids
    assert ours.eos_ids == {oracle.eos_token_id} and ours.vocab_size == len(oracle)


@pytest.mark.parametrize(
    ("messages", "words"),
    [([{"role": "fool", "content": ""}], "no fools"), (7, "not iter")],
)
def test_template_errors_are_told(messages: list[dict[str, str]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        BYTES.render_chat(messages)


def test_template_cannot_reach_the_system() -> None:
    evil = Tokenizer(byte_level(), template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="unsafe"):
        evil.render_chat([])


def test_without_or_with_a_broken_template() -> None:
    with pytest.raises(UserError, match="no chat template"):
        PIECES.render_chat([])
    with pytest.raises(UserError, match="not valid"):
        Tokenizer(byte_level(), template="{% if %}")


def test_eos_ids_come_from_all_files(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert Tokenizer.from_dir(tmp_path).eos_ids == {9}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    assert Tokenizer.from_dir(tmp_path).eos_ids == {7, 8, BYTES.token_id("<|end|>")}


def test_bos_is_added_once(tmp_path: Path) -> None:
    settings = {"bos_token": "<|bos|>", "add_bos_token": True}
    plain, bos = Tokenizer(byte_level(), settings), BYTES.token_id("<|bos|>")
    assert plain.encode("cat")[0] == bos and plain.encode("cat", add_special_tokens=False)[0] != bos
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", bos)])
    assert Tokenizer(backend, settings).encode("cat").count(bos) == 1


def test_truncation_in_the_file_does_not_cut_prompts() -> None:
    backend = byte_level()
    backend.enable_truncation(2)
    assert len(Tokenizer(backend).encode("the cat says hello")) > 2


def test_added_tokens_that_are_not_special_are_text() -> None:
    backend = byte_level()
    backend.add_tokens([AddedToken("<think>", special=False)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode("<think>hello")) == "<think>hello"


def test_older_formats_are_converted(tmp_path: Path) -> None:
    model = json.loads(byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}')
    converted = Tokenizer.from_dir(tmp_path)
    assert converted.encode("the cat says 日本") == BYTES.encode("the cat says 日本")
    assert converted.eos_ids == BYTES.eos_ids


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no tokenizer.json"),
        ({"tokenizer.json": "{"}, "is not a tokenizer"),
        ({"tokenizer.json": "{}"}, "is not a tokenizer"),
        ({"tokenizer_config.json": "[]"}, "is not a JSON object"),
        ({"vocab.json": "{"}, "cannot be converted"),
    ],
)
def test_bad_directories_are_refused(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        Tokenizer.from_dir(tmp_path)


def test_eos_ids_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level().to_str())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id"):
        Tokenizer.from_dir(tmp_path)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(UserError, match="not Unicode"):
        BYTES.encode("a\ud800b")


def test_import_stays_light() -> None:
    code = "import paceline.tokenizer, sys; sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
