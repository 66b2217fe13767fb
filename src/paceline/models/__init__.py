"""Model families, one file each, found by the `model_type` of config.json."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.models.decoder import DecoderModel
from paceline.models.mtp import MTP, MTPNames

AS_DEEPSEEK = MTPNames()


@cache
def families() -> Mapping[str, ModuleType]:
    """model_type to the file that builds it. Kept: names of tensors are asked about one by one, by the ten thousand."""
    found: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found.update(dict.fromkeys(getattr(module, "MODEL_TYPES", ()), module))
    return found


def family(config: ModelConfig) -> ModuleType:
    """Raises `UserError` that lists the known families."""
    known = families()
    if config.model_type not in known:
        names = ", ".join(sorted(known))
        raise UserError(f"model_type {config.model_type!r} is not supported; known families: {names}.")
    return known[config.model_type]


def build_model(config: ModelConfig) -> DecoderModel:
    """The target model of `config`; its parameters have no values yet. Raises `UserError` for fields without sense."""
    with described(config):
        model: DecoderModel = family(config).build(config)
    return model


@contextmanager
def described(config: ModelConfig) -> Iterator[None]:
    """Each family refuses what it would read wrongly; this is for fields that lack or contradict each other."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"config.json does not describe a {config.model_type} model ({type(error).__name__}: {error}): "
            "use the file that came with the weights."
        ) from error


def mtp_names(config: ModelConfig) -> MTPNames:
    """How this family's checkpoints name their MTP modules: its file's `MTP_NAMES`, else as DeepSeek-V3."""
    names: MTPNames = getattr(family(config), "MTP_NAMES", AS_DEEPSEEK)
    return names


def build_mtp(config: ModelConfig, target: DecoderModel, num_modules: int | None = None) -> MTP:
    """The first `num_modules` MTP modules (None: all that the configuration names) on top of `target`.

    Raises `UserError` for a model without any, and for fields without sense."""
    builder = getattr(family(config), "build_mtp", None)
    available = config.num_nextn_predict_layers
    if builder is None or available == 0:
        raise UserError(
            f"this {config.model_type} model has no MTP modules (its family has none, or num_nextn_predict_layers "
            "is 0); use --drafter ngram or none."
        )
    with described(config):
        mtp: MTP = builder(config, target, available if num_modules is None else min(num_modules, available))
    return mtp
