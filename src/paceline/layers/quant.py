"""Layers whose weights take one byte a number, and the swap that puts them into a model which is laid out but has no
memory yet. What loads such a model quantises tensor by tensor, so that it is never in memory as it was before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

import torch
from torch import Tensor, nn

from paceline.formats import FP8, INT8, Format
from paceline.kernels import gated, quantised_linear
from paceline.kernels.pages import Pages
from paceline.layers.basic import Linear
from paceline.layers.moe import MoE, MoESizes

# What stays as it is. kv_b_proj: MLA uses it as a matrix, on the query's side. The others: DeepSeek's FP8 checkpoints
# leave them; for int8 they are much of what a step reads, and cost little accuracy.
KEPT = {INT8.name: {"kv_b_proj"}, FP8.name: {"kv_b_proj", "lm_head", "head", "eh_proj"}}


class QuantLinear(nn.Module):
    """As `Linear`. weight [out, in] codes; its scales [out, groups] float32 are the parameter named as in a
    checkpoint, `weight_scale` (int8) or `weight_scale_inv` (fp8). It packs nothing: kernels read the codes."""

    def __init__(self, form: Format, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.form = form
        self.weight, scale = _parameters(form, (out_features, in_features))
        self.register_parameter("weight" + form.suffix, scale)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @property
    def scale(self) -> Tensor:
        return self.get_parameter("weight" + self.form.suffix)

    def numbers(self) -> Tensor:
        return self.form.dequantise(self.weight, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return quantised_linear(x, self.weight, self.scale, self.bias, self.form.powers)


class QuantMoE(MoE):
    """As `MoE`, its experts' weights in codes. gate_up_scale [E, 2 * intermediate, groups], down_scale [E, hidden,
    groups] float32. An expert is always a product of its own."""

    def __init__(self, form: Format, sizes: MoESizes) -> None:
        super().__init__(sizes)
        self.form = form
        self.gate_up, self.gate_up_scale = _parameters(form, tuple(self.gate_up.shape))
        self.down, self.down_scale = _parameters(form, tuple(self.down.shape))

    def expert(self, e: int, x: Tensor) -> Tensor:
        inner = gated(quantised_linear(x, self.gate_up[e], self.gate_up_scale[e], powers=self.form.powers))
        return quantised_linear(inner, self.down[e], self.down_scale[e], powers=self.form.powers)

    def numbers(self) -> tuple[Tensor, Tensor]:
        kept = (self.gate_up, self.gate_up_scale), (self.down, self.down_scale)
        gate_up, down = (torch.stack(list(map(self.form.dequantise, *pair))) for pair in kept)
        return gate_up, down

    def pack(self, pages: Pages) -> None:
        """Kernels read the codes as they lie."""

    def weights(self) -> dict[str, Tensor]:
        named, suffix = super().weights(), self.form.suffix
        gate, up = self.gate_up_scale.chunk(2, dim=1)
        for name, scale in (("gate_proj", gate), ("up_proj", up), ("down_proj", self.down_scale)):
            named.update({f"experts.{e}.{name}.weight{suffix}": scale[e] for e in range(self.sizes.num_experts)})
        return named


def quantise_modules(model: nn.Module, form: Format, plain: Set[Tensor] = frozenset()) -> None:
    """Swaps every linear layer and mixture of experts of `model` for its quantised twin. Not those of `KEPT`, nor what
    has memory already, being another model's (a shared head), nor what shares a parameter (a tied head), nor those
    whose weights are in `plain`."""
    stays = _shared(model) | plain
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            weights = _weights(child)
            if weights and name not in KEPT[form.name] and all(w.is_meta and w not in stays for w in weights):
                setattr(parent, name, _twin(child, form))


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """What of a module would be kept in codes."""
    if type(module) is MoE:
        return [module.gate_up, module.down]
    return [module.weight] if type(module) is Linear else []


def _twin(module: nn.Module, form: Format) -> nn.Module:
    if isinstance(module, MoE):
        twin = QuantMoE(form, module.sizes)
        twin.shared_experts, twin.gate = module.shared_experts, module.gate
        return twin
    assert isinstance(module, Linear)
    out_features, in_features = module.weight.shape
    return QuantLinear(form, in_features, out_features, module.bias is not None)


def _shared(model: nn.Module) -> set[Tensor]:
    """Parameters that several modules hold."""
    held = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    return {p for p, times in held.items() if times > 1}


def _parameters(form: Format, shape: tuple[int, ...]) -> tuple[nn.Parameter, nn.Parameter]:
    """Codes of this shape, and their scales by row; neither is trained."""
    scales = (*shape[:-2], *form.scale_shape(*shape[-2:]))
    return (
        nn.Parameter(torch.empty(shape, dtype=form.dtype), requires_grad=False),
        nn.Parameter(torch.empty(scales, dtype=torch.float32), requires_grad=False),
    )
