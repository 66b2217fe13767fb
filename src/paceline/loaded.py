"""A model in memory with its tokenizer, and engines on it: every part of Paceline put together in one place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from paceline.cache.blocks import BlockAllocator
from paceline.cache.pool import Pool
from paceline.config import EngineConfig, ModelConfig
from paceline.drafters import build_drafter
from paceline.engine.admit import Limits
from paceline.engine.burst import Burst
from paceline.engine.costs import step_costs
from paceline.engine.engine import Engine
from paceline.engine.scheduler import Scheduler
from paceline.errors import UserError
from paceline.grammar import Grammars
from paceline.models.decoder import DecoderModel
from paceline.runtime.build import load_target
from paceline.runtime.device import choose_device
from paceline.runtime.runner import Runner
from paceline.sampling import Sampler
from paceline.spec.adaptive import AdaptiveWidth
from paceline.spec.verify import verify
from paceline.spec.width import FixedWidth
from paceline.speculative_config import AUTO
from paceline.tokenizer import Tokenizer

# What the default number of blocks may take, whatever max_num_seqs and the context would like.
POOL_BYTES = 2 << 30


@dataclass(frozen=True)
class Loaded:
    """Weights are read-only, so any number of engines may share them. `path`: the checkpoint's directory.

    Example: `Loaded.from_dir(path).engine(EngineConfig(drafter="ngram"))`."""

    path: Path
    target: DecoderModel
    tokenizer: Tokenizer

    @staticmethod
    def from_dir(
        path: Path, dtype: str | None = None, device: str | None = None, quantization: str | None = None
    ) -> Loaded:
        """dtype None: the checkpoint's; device None: cuda if there is one; quantization as `load_target`. Raises
        `UserError` for a bad checkpoint."""
        target = load_target(path, dtype or "auto", choose_device(device), quantization)
        return Loaded(path, target, Tokenizer.from_dir(path))

    def engine(self, config: EngineConfig) -> Engine:
        """Raises `UserError` when the model cannot do what `config` asks."""
        model, limit = self.target.config, max_model_len(self.target.config, config)
        weight = self.target.norm.weight
        blocks = num_blocks(self.target, config, limit)
        pool = Pool(self.target.cache, blocks, config.block_size, weight.dtype, weight.device)
        runner = Runner(self.target, pool, self.path)
        drafter = build_drafter(config.drafter, config, runner)
        most = min(config.most_speculative_tokens, drafter.max_tokens)
        scheduler = Scheduler(
            BlockAllocator(blocks, config.block_size, config.enable_prefix_caching),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=limit,
            policy=FixedWidth(most),
        )
        limits = Limits(
            max_model_len=limit, vocab_size=model.vocab_size, max_speculative_tokens=config.most_speculative_tokens
        )
        eos = self.eos_token_ids
        engine = Engine(
            runner, drafter, scheduler, partial(verify, sampler=Sampler(eos)), limits, eos, weight.device, self.grammars
        )
        rounds = runner.rounds(drafter.chain) if config.num_scheduler_steps > 1 else None
        if rounds is not None:
            engine.burst = Burst(rounds, drafter, scheduler, config.num_scheduler_steps)
        if config.num_speculative_tokens == AUTO and most:
            table, learned = step_costs(engine, config, self.target, self.path, most)
            policy = AdaptiveWidth(table, most, config.latency_weight, learned.read())
            engine.policy.adapt(policy, lambda: learned.write(policy.known()))
        return engine

    @property
    def eos_token_ids(self) -> list[int]:
        return sorted(self.tokenizer.eos_ids.union(self.target.config.eos_token_ids))

    @cached_property
    def grammars(self) -> Grammars:
        """One for all engines, since what it makes of the tokenizer is the same."""
        vocab_size = max(self.target.config.vocab_size, self.tokenizer.vocab_size)
        return Grammars(self.tokenizer, vocab_size, self.eos_token_ids)


def max_model_len(model: ModelConfig, config: EngineConfig) -> int:
    """What was asked for, else the model's own context; raises `UserError` for more than the model knows."""
    context = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > context:
        raise UserError(
            f"max_model_len is {config.max_model_len}, but this model's context is {context}; ask for no more."
        )
    return config.max_model_len or context


def num_blocks(target: DecoderModel, config: EngineConfig, limit: int) -> int:
    """What was asked for, else enough for all requests at full length, within `POOL_BYTES` unless one alone needs more.

    Example: a context of 1000, blocks of 16, 4 requests: 63 blocks each, 252 in all."""
    if config.num_blocks is not None:
        return config.num_blocks
    each = -(-limit // config.block_size)
    block_bytes = target.cache.numbers_per_token * target.norm.weight.element_size() * config.block_size
    return max(each, min(each * config.max_num_seqs, POOL_BYTES // block_bytes))
