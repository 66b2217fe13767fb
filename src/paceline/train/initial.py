"""A model with random weights, or with those of a checkpoint, ready to train."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from paceline.checkpoint.load import load_weights
from paceline.checkpoint.reader import Checkpoint
from paceline.config import ModelConfig
from paceline.models import build_model, build_mtp
from paceline.train.loss import Trainee

RESIDUAL_OUTPUTS = ("o_proj.weight", "down.weight", "mlp.down", "down_proj.weight")


def new_trainee(
    config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device, draft_window: int = 0
) -> Trainee:
    """Weights depend on `config` and `seed` only. Correction biases stay float32, as in the checkpoints."""
    target = build_model(config)
    model = Trainee(target, build_mtp(config, target) if config.num_nextn_predict_layers else None, draft_window)
    draw_weights(model, config.num_hidden_layers, seed)
    for param in model.parameters():
        param.data = param.data.to(device, dtype if param.requires_grad else torch.float32)
    return model.to(device).train()


@torch.no_grad()
def draw_weights(model: nn.Module, num_layers: int, seed: int) -> None:
    """Matrices: normal with deviation 0.5 / sqrt(inputs), those that write to the residual stream less by sqrt(2
    layers); the embedding's rows 0.02 (its inputs are one-hot). Norms stay 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        if param.dim() >= 2:
            deviation = 0.02 if "embed_tokens" in name else 0.5 * param.shape[-1] ** -0.5
            if name.endswith(RESIDUAL_OUTPUTS):
                deviation /= (2 * num_layers) ** 0.5
            param.normal_(0.0, deviation, generator=generator)
        elif "bias" in name:
            param.zero_()


def fill(model: Trainee, directory: Path) -> None:
    """Gives the model the weights of a checkpoint of the same shape, its MTP modules among them.

    Raises UserError that names the first tensor missing, left over or misshapen."""
    depths = model.mtp.weights() if model.mtp is not None else {}
    repeated = model.mtp.shared_weights() if model.mtp is not None else {}
    mend = "--init-from needs a checkpoint of the shape that --config describes"
    load_weights(model.target.weights() | depths, Checkpoint(directory), ignored=repeated.__contains__, mend=mend)
