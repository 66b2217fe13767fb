"""Text to token ids and back, whole or piece by piece. The one file that knows tokenizers and transformers.

The plain `tokenizers` library reads `tokenizer.json` in milliseconds; transformers, which costs seconds to import, is
only asked to convert the older formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from paceline.chat_template import ChatTemplate
from paceline.errors import UserError

HELD_BACK = "\ufffd"  # what a decoder writes for bytes that are not (yet) a character
CONTEXT = 4  # tokens that an incremental decoding looks back on at most, where they begin with a character


class Tokenizer:
    """`backend` does the work; `settings` is tokenizer_config.json.

    eos_ids: ids that end a text, of generation_config.json (or config.json) and of the tokenizer itself.
    special_ids: ids that `decode` leaves out. vocab_size: ids the tokenizer knows (a model's table may be padded)."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        settings: Mapping[str, Any] | None = None,
        eos_ids: Iterable[int] = (),
        template: str | None = None,
    ) -> None:
        settings = settings or {}
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special = dict(_special_tokens(settings))
        self._template = ChatTemplate(template) if template is not None else None
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._named_id("bos_token")
        self.eos_id = self._named_id("eos_token")
        self.eos_ids = frozenset(eos_ids) | ({self.eos_id} if self.eos_id is not None else frozenset())
        # Llama-style checkpoints ask for the bos token in the settings rather than in tokenizer.json.
        asked = settings.get("add_bos_token") is True and self.bos_id not in self._ids("", special=True)
        self._prefix = [self.bos_id] if asked and self.bos_id is not None else []

    @staticmethod
    def from_dir(directory: str | Path) -> Tokenizer:
        """Raises UserError when the directory has no tokenizer, or one that cannot be read."""
        directory = Path(directory)
        settings = _json(directory / "tokenizer_config.json")
        return Tokenizer(_backend(directory), settings, _eos_ids(directory), _template(directory, settings))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a raw text, with the tokens that the checkpoint puts around every text (often bos) unless told not to.

        Raises UserError for text that is not Unicode (lone surrogates)."""
        ids = self._ids(text, special=add_special_tokens)
        return [*self._prefix, *ids] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token(self, token_id: int) -> str:
        """One id as text, special tokens included (for log-probabilities and coloured output)."""
        return self.decode([token_id], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None when it has none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def to_json(self) -> str:
        """The text of a tokenizer.json: all that it takes to make the same ids."""
        text: str = self._backend.to_str()
        return text

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def renders_tools(self) -> bool:
        """Whether the chat template tells the model of the `tools` that it is given."""
        return self._template is not None and "tools" in self._template.variables

    @property
    def renders_tool_calls(self) -> bool:
        """Whether the chat template renders messages with `tool_calls`, and what came of these."""
        return self._template is not None and self._template.knows_calls

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as the model was trained on it. Raises UserError without a template, or when it refuses."""
        if self._template is None:
            raise UserError("This model's tokenizer has no chat template: use raw prompts (--raw), or another model.")
        return self._template.render(messages, add_generation_prompt, {**self._special, **variables})

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """`render_chat` as ids; the template writes all special tokens itself."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self._ids(text, special=False)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=special).ids
        except (UnicodeEncodeError, TypeError):
            raise UserError("The text holds characters that are not Unicode (lone surrogates): remove them.") from None
        return ids

    def _named_id(self, name: str) -> int | None:
        return self.token_id(self._special[name]) if name in self._special else None


class IncrementalDecoder:
    """Ids in, text out, never half a character; all pieces together are `decode` of all ids.

    A piece is the difference of two decodings that begin at the same recent place, since a token's text may depend on
    the token before it (leading spaces) and a character may span tokens. With every clean end that place moves up to
    the last tokens, or to the end before it where those begin within a character, so a push costs what its own tokens
    cost. Example: "é" in two tokens: push([0xc3]) == "", push([0xa9]) == "é"."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._recent: list[int] = []  # the tokens since the place where decoding begins
        self._clean = 0  # how many of them had a clean end; the others are held back
        self._written = 0  # characters of `_recent`'s text that are already out

    def push(self, ids: Iterable[int]) -> str:
        """The text that is now certain; what may still be half a character stays back."""
        self._recent += [i for i in ids if i not in self._skipped]
        text = self._text(self._recent)
        certain = text.rstrip(HELD_BACK)
        new = certain[self._written :]
        self._written = max(self._written, len(certain))
        if certain == text and len(self._recent) > self._clean:
            self._move_up()
        return new

    def _move_up(self) -> None:
        last = self._recent[max(self._clean, len(self._recent) - CONTEXT) :]
        text = self._text(last)
        if text.startswith(HELD_BACK):
            last = self._recent[self._clean :]
            text = self._text(last)
        self._recent, self._clean, self._written = last, len(last), len(text)

    def flush(self) -> str:
        """What was held back, as it is: no more tokens come."""
        new = self._text(self._recent)[self._written :]
        self._written += len(new)
        return new

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _backend(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    if path.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as problem:  # the library raises plain Exception
            raise UserError(f"{path} is not a tokenizer ({problem}): download or export it again.") from None
    if not any((directory / name).is_file() for name in ("tokenizer.model", "vocab.json", "vocab.txt")):
        raise UserError(f"{directory} has no tokenizer.json: put the model's tokenizer files beside its weights.")
    return _converted(directory)


def _converted(directory: Path) -> tokenizers.Tokenizer:
    """Older formats, through transformers; nothing is downloaded and no code of the checkpoint runs."""
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        backend: tokenizers.Tokenizer = slow.backend_tokenizer
        return backend
    except Exception as problem:  # each format's reader has its own
        raise UserError(
            f"The tokenizer in {directory} cannot be converted ({type(problem).__name__}): add its tokenizer.json."
        ) from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: download or export it again.")
    return value


def _eos_ids(directory: Path) -> set[int]:
    for name in ("generation_config.json", "config.json"):
        eos = _json(directory / name).get("eos_token_id")
        ids = eos if isinstance(eos, list) else [eos]
        if eos is not None:
            if not all(isinstance(token, int) for token in ids):
                raise UserError(f"{directory / name}: eos_token_id must be a token id or a list of them, not {eos!r}.")
            return set(ids)
    return set()


def _template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the settings' `chat_template`: a text, or a list of named ones with a `default`."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """bos_token, eos_token and their like: each a text, or an object with `content`."""
    for name, token in settings.items():
        text = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str):
            yield name, text
