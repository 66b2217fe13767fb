"""Arms on transformers: plain greedy `generate`, and its prompt lookup. One request at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.bench.runs import Answer, Job, Load, Tick
from paceline.errors import UserError

NO_TOKEN = -1  # what no answer ever ends with


def load_transformers(path: Path, dtype: torch.dtype) -> Any:
    """The checkpoint as transformers reads it. Raises `UserError` when it cannot."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # it warns of every MTP weight, which it has no use for
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, local_files_only=True, trust_remote_code=False
        ).eval()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"transformers cannot read this model ({reason}); leave it out with --no-transformers."
        ) from error


@dataclass
class TransformersArm:
    """lookup: `prompt_lookup_num_tokens`; None: plain decoding. Several arms may share a model."""

    name: str
    model: Any
    lookup: int | None = None

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], load: Load, tick: Tick) -> list[Answer]:
        answers = []
        for job in jobs:
            answers.append(self._answer(job))
            tick(job.params.max_tokens)
        return answers

    def _answer(self, job: Job) -> Answer:
        from transformers import GenerationConfig

        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=job.params.max_tokens,
            eos_token_id=NO_TOKEN if job.params.ignore_eos else None,  # None: the model's own
            pad_token_id=0,
            prompt_lookup_num_tokens=self.lookup,
        )
        asked = torch.tensor([job.prompt])
        watch = _Watch(Answer(time.perf_counter(), len(job.prompt), tokens=[]))
        self.model.generate(asked, attention_mask=torch.ones_like(asked), generation_config=settings, streamer=watch)
        return watch.answer


@dataclass
class _Watch:
    """Transformers tells a streamer of the prompt first, then of the tokens of every step."""

    answer: Answer
    _prompt_told: bool = field(default=False)

    def put(self, value: Tensor) -> None:
        told = value.flatten().tolist()
        if self._prompt_told and told:
            self.answer.times.append(time.perf_counter())
            self.answer.counts.append(len(told))
            self.answer.tokens = [*(self.answer.tokens or []), *told]
        self._prompt_told = True

    def end(self) -> None:
        pass
