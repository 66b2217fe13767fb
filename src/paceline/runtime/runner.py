"""A model and its KV memory: one call is one pass."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from paceline.batch import ForwardBatch
from paceline.cache.attend import PagedAttend
from paceline.cache.pool import Pool
from paceline.checkpoint.resolve import resolve_model
from paceline.inference import inference
from paceline.kernels.chain import Chain
from paceline.kernels.rounds import Rounds
from paceline.models.decoder import DecoderModel
from paceline.models.mtp import MTP
from paceline.runtime.build import load_mtp


class Runner:
    """`path`: the directory the model came from, where drafters find what else is in it.

    Example: `hidden = runner(batch); logits = runner.logits(hidden[batch.take])`."""

    def __init__(self, model: DecoderModel, pool: Pool, path: Path) -> None:
        self.model, self.pool, self.path = model, pool, path

    @inference
    def __call__(self, batch: ForwardBatch) -> Tensor:
        """The states after the final norm [T, hidden]; the pass's keys and values are in the pool afterwards."""
        return self.model.forward(batch.tokens, batch.positions, PagedAttend(self.pool, batch))

    @inference
    def logits(self, hidden: Tensor) -> Tensor:
        """[L, hidden] to [L, vocab]."""
        return self.model.logits(hidden)

    def rounds(self, chain: Chain | None) -> Rounds | None:
        """Rounds of drafting and verifying in one call (see `engine.burst`); None where a part is not compiled."""
        parts, pool = self.model.compiled, self.pool
        if parts is None or not pool.spec.shared:
            return None
        stack, head = parts
        return Rounds(stack, head, pool.memory, pool.block_size, chain)

    def load_mtp(
        self, num_modules: int | None = None, draft_model: str | None = None, quantization: str | None = None
    ) -> MTP:
        """The model's own MTP modules, or those of a draft model (a directory or a Hugging Face id), as
        `build.load_mtp`."""
        path = self.path if draft_model is None else resolve_model(draft_model)
        return load_mtp(path, self.model, num_modules, quantization)
