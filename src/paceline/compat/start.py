"""From understood options to a loaded model, and what is common to the commands: exits, conversations, the context."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.compat.flags import Line
from paceline.request import SamplingParams

if TYPE_CHECKING:
    from paceline.llm import LLM

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Asked:
    """What a command line asks for, in our words: keywords of `LLM`, and the sampling."""

    llm: dict[str, Any]
    params: SamplingParams

    @staticmethod
    def of(options: dict[str, Any]) -> Asked:
        """Parts `options` by who takes them. Raises `UserError` for sampling out of range."""
        sampling = {field.name for field in fields(SamplingParams)} & options.keys()
        return Asked(
            {name: value for name, value in options.items() if name not in sampling},
            SamplingParams(**{name: options[name] for name in sampling}),
        )

    def load(self) -> LLM:
        """Raises `UserError` for a model or a draft that cannot be had."""
        from paceline.llm import LLM

        return LLM(**self.llm)


def context_of(model: str | None) -> int:
    """How many tokens of prompt and answer a model knows. Raises `UserError` as `resolve_model`."""
    from paceline.checkpoint.resolve import resolve_model
    from paceline.config import ModelConfig

    return ModelConfig.from_dir(Path(resolve_model(model))).max_position_embeddings


def conversation(llm: LLM, text: str) -> str | Messages:
    """A question to a model with a chat template, text to continue for any other."""
    return [{"role": "user", "content": text}] if llm.tokenizer.has_chat_template else text


def device_of(text: str, line: Line, flag: str) -> str | None:
    """Another system's device to ours, with a note where they differ: None is cuda if there is one, else the cpu.

    Example: `cpu` is cpu, `gpu:1` is cuda:1, `npu:0,npu:1` is None and two notes."""
    first, *more = [part.strip() for part in text.split(",")]
    if more:
        line.note(flag, f"one device runs the whole model in this version, here {first}")
    kind, colon, number = first.partition(":")
    kind = "cuda" if kind == "gpu" else kind
    if kind in ("cpu", "cuda"):
        return kind + colon + number
    line.note(flag, f"{kind} devices are not supported in this version; cuda is used if there is one, else the cpu")
    return None
