"""From what a user names to a run that can start. All that may be wrong is found here, before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.models import build_model, build_mtp
from paceline.tokenizer import Tokenizer
from paceline.tokenizer_training import VOCABULARY, train_tokenizer
from paceline.train.corpus import Corpus, load_corpus
from paceline.train.examples import jsonl_files, read_examples
from paceline.train.packing import Packed, pack
from paceline.train.run import Run
from paceline.train.settings import TrainConfig
from paceline.train.state import check_state
from paceline.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Paths and data of a run. Either `tokenizer`, a directory, or `vocab_size`, to train one. repeat: how often each
    source counts (a source is a file's name without its ending). init_from: the checkpoint whose weights the run
    begins with, random ones otherwise; `resume` then goes on from the run's own."""

    config: Path
    data: list[Path]
    out: Path
    eval_data: list[Path] = field(default_factory=list)
    tokenizer: Path | None = None
    vocab_size: int | None = None
    repeat: Mapping[str, float] = field(default_factory=dict)
    init_from: Path | None = None
    resume: bool = False


def prepare(inputs: Inputs, settings: TrainConfig, device: torch.device) -> tuple[Trainer, Run]:
    """Raises UserError for whatever cannot be trained; an `out` that was not there before is then not there after."""
    config = read_config(inputs.config)
    check_shape(config, settings)
    check_tokenizer_choice(inputs, config)
    check_modules(inputs, config, settings)
    files, held_out_files = jsonl_files(inputs.data), jsonl_files(inputs.eval_data)
    check_state(inputs.out / "state", inputs.resume)
    with vanishing(inputs.out):
        tokenizer = find_tokenizer(inputs, files, config)
        check_vocabulary(config, tokenizer)
        corpus = load_corpus(files, tokenizer, inputs.out / "train.safetensors")
        check_ids(config, corpus)
        answers_only = settings.loss_on == "answers"
        data = pack(corpus, settings.seq_len, settings.seed, answers_only=answers_only, repeat=inputs.repeat)
        held_out = read_held_out(held_out_files, tokenizer, inputs.out, settings.seq_len)
        if held_out is not None:
            check_ids(config, held_out.corpus)
        trainer = Trainer(settings, config, data, device, inputs.init_from)
        return trainer, Run(inputs.out, tokenizer, config, held_out)


@contextmanager
def vanishing(directory: Path) -> Iterator[None]:
    """When the block fails, a directory that it made is removed again."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} exists and is no directory: name another --out.")
    new = not directory.exists()
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def read_config(path: Path) -> ModelConfig:
    """From config.json, or from the directory that holds it."""
    if path.is_dir():
        return ModelConfig.from_dir(path)
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raw = None
    if not isinstance(raw, dict):
        raise UserError(f"--config {path} is not a JSON object; give a model's config.json.")
    return ModelConfig.from_dict(raw)


def check_shape(config: ModelConfig, settings: TrainConfig) -> None:
    """Raises UserError when no such model can be laid out, its context is shorter than the rows, or its modules have
    heads of their own: all that is trained here predicts through the target's."""
    if settings.seq_len > config.max_position_embeddings:
        raise UserError(
            f"--seq-len {settings.seq_len} is longer than the model's context of {config.max_position_embeddings}: "
            "make it shorter, or max_position_embeddings larger."
        )
    with torch.device("meta"):
        target = build_model(config)
        mtp = build_mtp(config, target) if config.num_nextn_predict_layers else None
    if mtp is not None and not mtp.shares:
        raise UserError(
            f"The MTP modules of {config.model_type} have heads of their own, which train does not teach: set "
            "num_nextn_predict_layers to 0, or take another family."
        )


def check_modules(inputs: Inputs, config: ModelConfig, settings: TrainConfig) -> None:
    if settings.freeze_target and not (inputs.init_from or inputs.resume):
        raise UserError("--freeze-target leaves the target as it is: say with --init-from DIR which one.")
    if settings.freeze_target and not config.num_nextn_predict_layers:
        raise UserError("--freeze-target leaves nothing to train: config.json has no MTP modules.")
    if settings.draft_window and not config.num_nextn_predict_layers:
        raise UserError("--draft-window is for MTP modules, and config.json has none: leave it out.")


def check_tokenizer_choice(inputs: Inputs, config: ModelConfig) -> None:
    if (inputs.tokenizer is None) == (inputs.vocab_size is None):
        raise UserError("Say which tokenizer to use: give either --tokenizer DIR or --vocab-size N to train one.")
    if inputs.vocab_size is not None and inputs.vocab_size > config.vocab_size:
        raise UserError(f"--vocab-size {inputs.vocab_size} is above config.json's {config.vocab_size}: make it less.")


def find_tokenizer(inputs: Inputs, files: list[Path], config: ModelConfig) -> Path:
    """The directory that was named, or of a tokenizer trained now (kept for --resume)."""
    if inputs.tokenizer is not None:
        return inputs.tokenizer
    directory = inputs.out / "tokenizer"
    if not (inputs.resume and (directory / VOCABULARY).is_file()):
        texts = (text for example in read_examples(files) for text in example.texts())
        train_tokenizer(texts, inputs.vocab_size or 0, directory, config.max_position_embeddings)
    return directory


def check_vocabulary(config: ModelConfig, tokenizer: Path) -> None:
    """Raises UserError when the tokenizer has ids that the model has no row for."""
    known = Tokenizer.from_dir(tokenizer).vocab_size
    if known > config.vocab_size:
        raise UserError(
            f"The tokenizer has {known} tokens, config.json only {config.vocab_size}: make vocab_size as large."
        )


def check_ids(config: ModelConfig, corpus: Corpus) -> None:
    """Raises UserError for token ids, read as such, that the model has no row for."""
    if (largest := int(corpus.tokens.max())) >= config.vocab_size:
        raise UserError(
            f"The data has the token id {largest}, config.json only {config.vocab_size} tokens: "
            "give what a model with this vocabulary wrote."
        )


def read_held_out(files: list[Path], tokenizer: Path, out: Path, length: int) -> Packed | None:
    """Always in the same order, whatever the run's seed: evaluations of different runs see the same rows."""
    if not files:
        return None
    return pack(load_corpus(files, tokenizer, out / "eval.safetensors"), length, 0, answers_only=True)
