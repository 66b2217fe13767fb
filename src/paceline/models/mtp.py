"""Multi-token-prediction modules (DeepSeek-V3 technical report, section 2.2).

Depth d (1, 2, ...) at place i:  h' = eh_proj(concat(enorm(Emb(t_{i+d})), hnorm(h))),  then one decoder layer of the
model's own kind, then shared_head.norm; it predicts t_{i+d+1}. h is the target's state at place i (after its final
norm, unless the family says otherwise) for d = 1, and depth d-1's output at place i after that. The rotary position
is i.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from paceline.formats import INT8, Format
from paceline.kernels import norm_pairs, pack_weight, packed_linear
from paceline.kernels.chain import Depth
from paceline.kernels.layer import Join, PackedLayer, PackedModule, pack_module
from paceline.kernels.pages import Pages
from paceline.layers.attention import Attend, CacheSpec
from paceline.layers.basic import Embedding, Linear, RMSNorm, prefixed
from paceline.models.decoder import DecoderLayer, DecoderModel, pack


@dataclass(frozen=True)
class MTPNames:
    """Where a family's checkpoints keep module d (from 0), and its own words for the parts of a module.

    prefix: `{layer}` stands for num_hidden_layers + d, `{depth}` for d. words: our part to the family's, where they
    differ. The defaults are DeepSeek-V3's. Example: {"enorm": "token_layernorm"}."""

    prefix: str = "model.layers.{layer}."
    words: Mapping[str, str] = field(default_factory=dict)

    def name(self, depth: int, part: str, num_hidden_layers: int) -> str:
        """Example: (0, "enorm.weight", 61) is "model.layers.61.enorm.weight"."""
        return self.prefix.format(layer=num_hidden_layers + depth, depth=depth) + _reword(part, self.words)

    def find(self, name: str, num_hidden_layers: int) -> tuple[int, str] | None:
        """Depth and part of a checkpoint's tensor, the inverse of `name`; None for what is no module's."""
        found = self._pattern.match(name)
        if found is None or (depth := int(found[1]) - self._first * num_hidden_layers) < 0:
            return None
        return depth, _reword(found[2], {theirs: ours for ours, theirs in self.words.items()})

    @cached_property
    def _first(self) -> bool:
        """Whether the count goes on behind the layers."""
        return "{layer}" in self.prefix

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Of all names below a prefix: its number, and what follows."""
        before, after = re.split(r"\{\w+\}", self.prefix)
        return re.compile(re.escape(before) + r"(\d{1,9})" + re.escape(after) + r"(.+)")


def _reword(part: str, words: Mapping[str, str]) -> str:
    for old, new in words.items():
        if part == old or part.startswith(old + "."):
            return new + part[len(old) :]
    return part


class MTPDepth(nn.Module):
    """One module on `target`, whose embedding, head and rotary positions it uses, as in DeepSeek-V3.

    hidden_first: eh_proj reads (hidden state, embedding) rather than (embedding, hidden state). shares: False where a
    module has an embedding and a head of its own."""

    def __init__(
        self, index: int, block: DecoderLayer, target: DecoderModel, hidden_first: bool = False, shares: bool = True
    ) -> None:
        super().__init__()
        hidden, vocab, eps = target.config.hidden_size, target.config.vocab_size, target.norm.eps
        self.index, self.rope, self.hidden_first, self.shares = index, target.rope, hidden_first, shares
        self.enorm, self.hnorm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.eh_proj = Linear(2 * hidden, hidden)
        self.block = block
        self.norm = RMSNorm(hidden, eps)
        self.embed_tokens = target.embed_tokens if shares else Embedding(vocab, hidden)
        self.head = target.lm_head if shares else Linear(hidden, vocab)
        self._whole: PackedModule | None = None
        self._head: Tensor | None = None  # as codes

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, features: Tensor) -> Tensor:
        """tokens, positions [T], features [T, hidden] to states after shared_head.norm [T, hidden], or only those of
        the rows that `attend` wants; attends as layer `index`."""
        if self._whole is not None and (paged := attend.paged(self.index)) is not None:
            return self._whole(tokens, positions, features, paged)
        cos, sin = self.rope(positions)
        weights = self.enorm.weight, self.hnorm.weight
        pairs = norm_pairs(tokens, self.embed_tokens.weight, features, weights, self.enorm.eps, self.hidden_first)
        x = self.eh_proj(pairs)
        return self.norm(self.block(self.index, x, cos, sin, attend))  # type: ignore[no-any-return]

    def pack(self, pages: Pages) -> None:
        """After its parts."""
        joined = self.eh_proj.packed if isinstance(self.eh_proj, Linear) else None
        self._whole, self._head = self._around(self.block.whole, joined), None

    def as_codes(self, pages: Pages) -> PackedModule | None:
        """The whole module in int8, see `pack_weight`; None where it is no call of its own."""
        layer, joined = self.block.as_codes(pages), pack_weight(self.eh_proj.numbers(), codes=True)
        return self._around(layer, None if joined is None else pages.keep(joined))

    def _around(self, layer: PackedLayer | None, joined: Tensor | None) -> PackedModule | None:
        if layer is None or joined is None:
            return None
        parts = (self.embed_tokens.weight, self.enorm.weight, self.hnorm.weight, joined, self.norm.weight)
        around = Join(*parts, self.rope.table(joined.device), self.hidden_first, self.norm.eps)
        return pack_module(layer, around)

    def take(self, whole: PackedModule, head: Tensor) -> None:
        """From now on this is what `as_codes` made, and its head, as codes."""
        self._whole, self._head = whole, head

    def chained(self, memory: Tensor) -> Depth | None:
        """With its head, to draft in one call with the others; memory: its layer's in a paged pool. None where a part
        of it is not compiled."""
        head = self._head if self._head is not None or not isinstance(self.head, Linear) else self.head.packed
        if self._whole is None or head is None or head.is_mkldnn:
            return None
        return Depth(self._whole, head, self.head.bias, memory)

    def logits(self, hidden: Tensor) -> Tensor:
        """[L, hidden] to [L, vocab]."""
        if self._head is not None:
            return packed_linear(hidden, self._head, self.head.bias)
        return self.head(hidden)  # type: ignore[no-any-return]

    def weights(self) -> dict[str, Tensor]:
        """The module's own tensors by their names below `model.layers.{N}.`, as views."""
        return {
            "enorm.weight": self.enorm.weight,
            "hnorm.weight": self.hnorm.weight,
            **prefixed("eh_proj.", dict(self.eh_proj.named_parameters())),
            "shared_head.norm.weight": self.norm.weight,
            **self.block.weights(),
            **({} if self.shares else self._ends() | prefixed("shared_head.head.", dict(self.head.named_parameters()))),
        }

    def shared_weights(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint may repeat in every module; they are the target's."""
        return self._ends() if self.shares else {}

    def _ends(self) -> dict[str, Tensor]:
        head = prefixed("shared_head.head.", dict(self.head.named_parameters()))
        return {"embed_tokens.weight": self.embed_tokens.weight} | head


class MTP(nn.Module):
    """All modules of a model, or the first few. `depths[d]` keeps its cache in layer d of a pool made from `cache`, and
    lives in the checkpoint where `names` says; first_layer is the target's num_hidden_layers. `form`: what most weights
    are kept in, None for plain numbers; `codes`: whether they are multiplied in int8, whatever they are kept in.

    Call a depth as `depths[d](tokens, positions, attend, features)` (see `MTPDepth.forward`)."""

    def __init__(
        self, depths: list[MTPDepth], cache: CacheSpec, first_layer: int, names: MTPNames | None = None
    ) -> None:
        super().__init__()
        self.depths = nn.ModuleList(depths)
        self.cache, self.first_layer, self.names = cache, first_layer, names or MTPNames()
        self.form: Format | None = None
        self.codes = False

    def weights(self) -> dict[str, Tensor]:
        """Checkpoint name to a view, of what is the modules' own: as `DecoderModel.weights`."""
        return self._named("weights")

    @property
    def shares(self) -> bool:
        """Whether all modules use the target's embedding and head."""
        return all(cast(MTPDepth, depth).shares for depth in self.depths)

    @property
    def quantization(self) -> str:
        """In the words of `draft_quantization`: int8, fp8 or none."""
        form = INT8 if self.codes else self.form
        return "none" if form is None else form.name

    def shared_weights(self) -> dict[str, Tensor]:
        """Checkpoint name to a view of the target's embedding and head, which some checkpoints repeat."""
        return self._named("shared_weights")

    def _named(self, which: str) -> dict[str, Tensor]:
        return {
            self.names.name(d, part, self.first_layer): view
            for d, depth in enumerate(self.depths)
            for part, view in getattr(depth, which)().items()
        }

    def pack(self, codes: bool = False) -> None:
        """Call it after loading; as `decoder.pack`. codes: where every module is a call of its own, they and their head
        in int8; the weights as they are loaded stay what they are."""
        self.codes = codes and self._as_codes()
        if not self.codes:
            pack(self)

    @torch.no_grad()
    def _as_codes(self) -> bool:
        depths, pages = [cast(MTPDepth, depth) for depth in self.depths], Pages()
        heads = {depth.head: pack_weight(depth.head.numbers(), codes=True) for depth in depths}  # mostly one
        kept = {head: pages.keep(codes) for head, codes in heads.items() if codes is not None}
        wholes = [whole for depth in depths if (whole := depth.as_codes(pages)) is not None]
        if len(wholes) < len(depths) or len(kept) < len(heads):
            return False
        for depth, whole in zip(depths, wholes, strict=True):
            depth.take(whole, kept[depth.head])
        return True
