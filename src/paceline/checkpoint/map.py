"""Which tensors of a checkpoint belong to whom: the target and its MTP modules share one directory."""

from __future__ import annotations

from paceline.config import ModelConfig
from paceline.models import mtp_names


def mtp_depth(name: str, config: ModelConfig) -> int | None:
    """Depth (from 0) of the MTP module that owns `name`; None for the target's tensors.

    Example: num_hidden_layers 61, num_nextn_predict_layers 1: `model.layers.61.enorm.weight` belongs to depth 0."""
    found = mtp_names(config).find(name, config.num_hidden_layers)
    return found[0] if found is not None and found[0] < config.num_nextn_predict_layers else None


def not_of_target(name: str, config: ModelConfig) -> bool:
    """Names that the target leaves alone: MTP modules, a head tied to the embedding, and what old exports computed."""
    tied_head = name == "lm_head.weight" and bool(config.raw.get("tie_word_embeddings", False))
    return mtp_depth(name, config) is not None or tied_head or name.endswith("rotary_emb.inv_freq")
