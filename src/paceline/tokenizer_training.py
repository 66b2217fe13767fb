"""Trains a byte-level BPE tokenizer and writes it as a Hugging Face directory with a chat template.

Every text comes back exactly from its ids, since all 256 bytes are in the vocabulary. Digits stand alone, so that a
number's value does not hide in its pieces. Beside `tokenizer.py` the only file that knows the `tokenizers` library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from paceline.errors import UserError

END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL_TOKENS = (END_OF_TEXT, *ROLES.values(), END_OF_TURN)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
VOCABULARY, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the role must be system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path, context: int = 4096) -> None:
    """Writes tokenizer.json and tokenizer_config.json. SPECIAL_TOKENS get the ids 0, 1, ... in their order.

    Raises UserError when `vocab_size` has no room for the bytes and the special tokens."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"--vocab-size {vocab_size} is too small: all bytes and special tokens need {MIN_VOCAB_SIZE}.")
    tokenizer = Tokenizer(models.BPE())
    digits, pieces = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(tokenizer_settings(context), indent=2)
    (directory / SETTINGS).write_text(settings + "\n", encoding="utf-8")
    tokenizer.save(str(directory / VOCABULARY))


def tokenizer_paths(directory: Path) -> list[Path]:
    """The files in `directory` that make a tokenizer and its chat template."""
    return [directory / name for name in (VOCABULARY, SETTINGS, TEMPLATE) if (directory / name).is_file()]


def tokenizer_settings(context: int) -> dict[str, object]:
    """tokenizer_config.json; `context` is the longest text in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": list(ROLES.values()),
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
