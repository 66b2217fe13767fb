"""Frozen configuration: what a checkpoint says of its model, and what a user says of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paceline.errors import UserError
from paceline.speculative_config import AUTO

MAX_SPECULATIVE_TOKENS = 16
DRAFT_WINDOW, FEW_LAYERS = 256, 16
AUTO_MOST = 8  # drafts at a time where the engine chooses: deeper ones hardly ever pay
MAX_CONFIG_BYTES = 4 << 20
MAX_LAYERS, MAX_SIZE = 4096, 1 << 31  # far beyond any model: what is laid out before a tensor is read needs a bound
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def dtype_from_name(name: str) -> torch.dtype:
    """`bfloat16`, `float16` or `float32` to torch's dtype; raises `UserError` for any other name."""
    if name not in _DTYPES:
        raise UserError(f"dtype {name!r} is not known; use one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


@dataclass(frozen=True)
class ModelConfig:
    """The fields of a Hugging Face `config.json` that every family has; a family reads its own ones from `raw`."""

    model_type: str
    hidden_size: int
    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    num_nextn_predict_layers: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    raw: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> ModelConfig:
        """Raises `UserError` that names the field which is missing or of the wrong kind."""
        return ModelConfig(
            model_type=str(raw.get("model_type", "")),
            hidden_size=_whole(raw, "hidden_size"),
            vocab_size=_whole(raw, "vocab_size"),
            num_hidden_layers=_whole(raw, "num_hidden_layers", most=MAX_LAYERS),
            max_position_embeddings=_whole(raw, "max_position_embeddings"),
            num_nextn_predict_layers=_whole(raw, "num_nextn_predict_layers", least=0, most=MAX_LAYERS, default=0),
            eos_token_ids=_token_ids(raw.get("eos_token_id")),
            dtype=dtype_from_name(str(raw.get("dtype") or raw.get("torch_dtype") or "float32")),
            raw=dict(raw),
        )

    @staticmethod
    def from_dir(directory: str | Path) -> ModelConfig:
        """Reads `config.json`; raises `UserError` as `read_config` and `from_dict` do."""
        return ModelConfig.from_dict(read_config(directory))

    def to_dict(self) -> dict[str, Any]:
        return dict(self.raw)


def read_config(directory: str | Path) -> dict[str, Any]:
    """`config.json` as it stands; raises `UserError` when it is missing, too large, or not a JSON object."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{path.parent} has no config.json; give the directory of a Hugging Face checkpoint.")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes, which no model's config.json is.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch the file again.") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold a JSON object; fetch the file again.")
    return raw


def _whole(raw: Mapping[str, Any], name: str, least: int = 1, most: int = MAX_SIZE, default: int | None = None) -> int:
    value = raw.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"config.json: {name} must be a whole number, at least {least}, not {value!r}.")
    if value > most:
        raise UserError(f"config.json: {name} is {value}, and no model has more than {most}; fetch the file again.")
    return value


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) for token in ids):
        raise UserError(f"config.json: eos_token_id must be a token id or a list of them, not {value!r}.")
    return tuple(ids)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the engine runs. `num_blocks` None: as many as `max_num_seqs` requests of `max_model_len` need, within
    reason. `mtp_modules` None: one module for each drafted token, as far as the checkpoint has them;
    fewer are fed their own output. `draft_model`: where the MTP modules are, a directory or a Hugging Face id; None:
    in the target's own checkpoint. `draft_quantization`: int8, fp8 or none for them; "auto": int8
    where a module is one compiled call, else as the target; None: as the target, whatever is faster. `draft_window`:
    how many places a token sees at most when modules draft, its own included; 0: all; None: 256 where the target has so
    few layers that a module's reading of a long context counts, else all.
    `num_scheduler_steps`: passes of the target in one step at most, where they are one compiled call; 1: each pass is a
    step. `drafter`: a name, or several with commas between them, of which the first is that of requests that name none.
    `num_speculative_tokens` "auto": as many as pay, request by request and step by step, none if none does.
    `latency_weight` then says whose time counts: 0 that of all tokens together, 1 that of each request, slow ones too.

    Raises `UserError` for a value that makes no sense."""

    drafter: str = "mtp"
    num_speculative_tokens: int | str = AUTO
    latency_weight: float = 0.0
    mtp_modules: int | None = None
    draft_model: str | None = None
    draft_quantization: str | None = AUTO
    draft_window: int | None = None
    ngram_min: int = 2
    ngram_max: int = 4
    block_size: int = 16
    num_blocks: int | None = None
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 1024
    max_model_len: int | None = None
    num_scheduler_steps: int = 64
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        limit, k = MAX_SPECULATIVE_TOKENS, self.num_speculative_tokens
        checks = (
            (
                k == AUTO or (isinstance(k, int) and 0 <= k <= limit),
                f"num_speculative_tokens must be auto or lie between 0 and {limit}",
            ),
            (0 <= self.latency_weight <= 1, "latency_weight must lie between 0 and 1"),
            (self.mtp_modules is None or self.mtp_modules >= 1, "mtp_modules must be at least 1"),
            (self.draft_window is None or self.draft_window >= 0, "draft_window must be 0 (all) or a count of tokens"),
            (1 <= self.ngram_min <= self.ngram_max, "ngram_min must be at least 1 and at most ngram_max"),
            (self.block_size >= 1, "block_size must be at least 1"),
            (self.num_blocks is None or self.num_blocks >= 1, "num_blocks must be at least 1"),
            (1 <= self.max_num_seqs <= 4096, "max_num_seqs must lie between 1 and 4096"),
            (self.max_num_batched_tokens >= 1, "max_num_batched_tokens must be at least 1"),
            (1 <= self.num_scheduler_steps <= 1024, "num_scheduler_steps must lie between 1 and 1024"),
            (self.max_model_len is None or self.max_model_len >= 1, "max_model_len must be at least 1"),
        )
        for good, sentence in checks:
            if not good:
                raise UserError(sentence + ".")

    def window_of(self, layers: int) -> int:
        """`draft_window` for a target of so many layers.

        Beside few layers a module that reads the whole context is a large part of a step, and its drafts are no
        better: on contexts of 625 to 1000 tokens acceptance was the same with 128, 256, 512 places and all. (The idea:
        MagicDec, Chen et al. 2024, arXiv:2408.11049.)"""
        return self.draft_window if self.draft_window is not None else DRAFT_WINDOW if layers <= FEW_LAYERS else 0

    def check_window(self, compiled: bool) -> None:
        """Raises `UserError` for a window that was asked for where modules are not compiled and would see all."""
        if self.draft_window and not compiled:
            raise UserError(
                f"draft_window {self.draft_window} is for MTP modules that are one compiled call (latent attention "
                "with few heads, in bf16 on a CPU that multiplies it); here they see all places: leave it out."
            )

    @property
    def most_speculative_tokens(self) -> int:
        """Most drafts at a time."""
        k = self.num_speculative_tokens
        return k if isinstance(k, int) else AUTO_MOST
