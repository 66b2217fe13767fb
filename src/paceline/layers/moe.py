"""Mixture of experts as in DeepSeek-V3:
sigmoid scores, a correction bias that only steers the choice, groups, shared experts; or softmax scores and no bias.

Sources: DeepSeek-V3 technical report, section 2.1.2; Qwen3 technical report, section 2. Names as in their checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.kernels import gated, native, pack_weight, packed_linear, route, router_scores
from paceline.kernels.layer import Mixture
from paceline.kernels.moe import PackedExperts, gated_experts, pack_experts
from paceline.kernels.pages import Pages
from paceline.layers.basic import GatedMLP, prefixed

TOGETHER_AT_MOST = 1 << 20


@dataclass(frozen=True)
class MoESizes:
    """scoring: `sigmoid`, with a correction bias (DeepSeek-V3), or `softmax` over all experts, without one (Qwen3)."""

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    num_groups: int
    top_groups: int
    num_shared: int
    normalise: bool
    scaling: float
    scoring: Literal["sigmoid", "softmax"] = "sigmoid"


class Router(nn.Module):
    """Chooses `top_k` experts per row. weight [E, hidden]; e_score_correction_bias [E] float32 or None."""

    def __init__(self, sizes: MoESizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.weight = nn.Parameter(torch.empty(sizes.num_experts, sizes.hidden_size))
        bias = nn.Parameter(torch.zeros(sizes.num_experts, dtype=torch.float32), requires_grad=False)
        self.e_score_correction_bias = bias if sizes.scoring == "sigmoid" else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, hidden] to experts [T, top_k] int64 and their weights [T, top_k] float32."""
        s, bias = self.sizes, self.e_score_correction_bias
        scores = router_scores(x, self.weight, s.scoring)
        choice = scores if bias is None else scores + bias
        if s.top_groups < s.num_groups:
            choice = self.within_groups(choice)
        experts = choice.topk(s.top_k, dim=-1).indices
        weights = scores.gather(1, experts)
        if s.normalise:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return experts, weights * s.scaling

    def shares(self, x: Tensor) -> Tensor:
        """x [T, hidden] to every expert's weight [T, E] float32, 0 for those that were not chosen."""
        s, bias = self.sizes, self.e_score_correction_bias
        if s.top_groups == s.num_groups and bias is not None:
            return route(x, self.weight, bias, s.top_k, s.normalise, s.scaling)
        experts, weights = self(x)
        return torch.zeros(len(x), s.num_experts, device=x.device).scatter_(1, experts, weights)

    def within_groups(self, choice: Tensor) -> Tensor:
        """Only the `top_groups` groups with the largest sum of their two best scores stay in play."""
        s = self.sizes
        grouped = choice.view(-1, s.num_groups, s.num_experts // s.num_groups)
        best = grouped.topk(2, dim=-1).values.sum(dim=-1).topk(s.top_groups, dim=-1).indices
        keep = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=choice.device).scatter_(1, best, True)
        return grouped.masked_fill(~keep[:, :, None], float("-inf")).flatten(1)


class MoE(nn.Module):
    """shared(x) + sum of weight * expert(x) over the chosen experts. gate_up [E, 2 * intermediate, hidden], down
    [E, hidden, intermediate].

    Only experts that some row chose are touched, unless all of a layer together are so small (`TOGETHER_AT_MOST`
    numbers) that reading them costs less than calling a product for each: then they are one product, in which those
    that were not chosen weigh 0."""

    def __init__(self, sizes: MoESizes) -> None:
        super().__init__()
        s = self.sizes = sizes
        self.gate = Router(sizes)
        self.gate_up = nn.Parameter(torch.empty(s.num_experts, 2 * s.intermediate_size, s.hidden_size))
        self.down = nn.Parameter(torch.empty(s.num_experts, s.hidden_size, s.intermediate_size))
        self.shared_experts = GatedMLP(s.hidden_size, s.num_shared * s.intermediate_size) if s.num_shared else None
        self.load: Tensor | None = None
        self._compiled: PackedExperts | None = None
        self._packed: list[tuple[Tensor, Tensor]] | None = None
        self._together: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        if self._compiled is not None:
            return gated_experts(x, self.gate.shares(x), self.sizes.top_k, self._compiled)
        if self._together is not None:
            return self.together(x, *self._together)
        experts, weights = self.gate(x)
        if self.training:
            self.count(experts)
        routed = self.routed(x, experts, weights)
        return routed if self.shared_experts is None else routed + self.shared_experts(x)

    def routed(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Rows sorted by expert, one product pair an expert, then back in order: a row's sum runs over its own choices
        in its own order, so it does not depend on the other rows."""
        flat = experts.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=self.sizes.num_experts).tolist()
        parts = x[order // self.sizes.top_k].split(counts)
        out = torch.cat([self.expert(e, part) for e, part in enumerate(parts) if counts[e]])
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        chosen = out[back].view(*experts.shape, -1)
        return (chosen * weights.to(x.dtype)[:, :, None]).sum(dim=1)

    def expert(self, e: int, x: Tensor) -> Tensor:
        if self._packed is not None:
            gate_up, down = self._packed[e]
            return packed_linear(gated(packed_linear(x, gate_up)), down)
        return F.linear(gated(F.linear(x, self.gate_up[e])), self.down[e])

    def together(self, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """All experts and the shared ones as one wide gated MLP; an expert that was not chosen weighs exactly 0."""
        inner = gated(packed_linear(x, gate_up), self.gate.shares(x), self.sizes.intermediate_size)
        return packed_linear(inner, down)

    def pack(self, pages: Pages) -> None:
        self._compiled = pack_experts(*self.expert_weights(), pages)
        if self._compiled is not None:
            return
        if self.gate_up.numel() + self.down.numel() <= TOGETHER_AT_MOST:
            gate_up, down = (pack_weight(w) for w in self.together_weights())
            self._together = (gate_up, down) if gate_up is not None and down is not None else None
            return
        pairs = [(pack_weight(self.gate_up[e]), pack_weight(self.down[e])) for e in range(self.sizes.num_experts)]
        packed = [(g, d) for g, d in pairs if g is not None and d is not None]
        self._packed = packed if len(packed) == len(pairs) else None

    def mixture(self, pages: Pages, codes: bool = False) -> Mixture | None:
        """What this is, packed, for a layer in one call. codes: as `pack_weight`."""
        s, gate = self.sizes, self.gate
        bias = gate.e_score_correction_bias
        simple = s.top_groups == s.num_groups and s.num_experts <= native.MAX_EXPERTS
        if bias is None or bias.dtype != torch.float32 or not simple:
            return None
        packed = pack_experts(*self.expert_weights(), pages, codes) if codes else self._compiled
        return None if packed is None else Mixture(packed, gate.weight, bias, s.top_k, s.normalise, s.scaling)

    def numbers(self) -> tuple[Tensor, Tensor]:
        """gate_up and down, whatever they are kept in."""
        return self.gate_up, self.down

    def expert_weights(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Gates, ups [intermediate, hidden] and downs [hidden, intermediate] of the routed experts and then the shared
        ones, whose product is a sum over pieces as large as the others."""
        gate_up, down = self.numbers()
        gates, ups, downs = *(list(part) for part in gate_up.chunk(2, dim=1)), list(down)
        if self.shared_experts is not None:
            size = self.sizes.intermediate_size
            gate, up = self.shared_experts.gate_up.numbers().chunk(2)
            gates += gate.split(size)
            ups += up.split(size)
            downs += self.shared_experts.down.numbers().split(size, dim=1)
        return gates, ups, downs

    def together_weights(self) -> tuple[Tensor, Tensor]:
        """gate_up [2 * n, hidden], all gates first; down [hidden, n]. n: the routed experts' sizes, then the shared."""
        gates, ups = (part.flatten(0, 1) for part in self.gate_up.chunk(2, dim=1))
        downs = self.down.transpose(0, 1).flatten(1)
        if self.shared_experts is None:
            return torch.cat((gates, ups)), downs
        gate, up = self.shared_experts.gate_up.weight.chunk(2)
        return torch.cat((gates, gate, ups, up)), torch.cat((downs, self.shared_experts.down.weight), dim=1)

    @torch.no_grad()
    def count(self, experts: Tensor) -> None:
        load = torch.bincount(experts.flatten(), minlength=self.sizes.num_experts)
        self.load = load if self.load is None else self.load + load

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Auxiliary-loss-free balancing: the bias of an overloaded expert falls by `rate`, of an idle one rises."""
        bias = self.gate.e_score_correction_bias
        if self.load is None or bias is None:
            return
        load = self.load.to(torch.float32)
        bias.add_(rate * torch.sign(load.mean() - load))
        self.load = None

    def weights(self) -> dict[str, Tensor]:
        gate, up = self.gate_up.chunk(2, dim=1)
        named = prefixed("gate.", dict(self.gate.named_parameters()))
        for e in range(self.sizes.num_experts):
            named[f"experts.{e}.gate_proj.weight"] = gate[e]
            named[f"experts.{e}.up_proj.weight"] = up[e]
            named[f"experts.{e}.down_proj.weight"] = self.down[e]
        if self.shared_experts is not None:
            named.update(prefixed("shared_experts.", self.shared_experts.weights()))
        return named
