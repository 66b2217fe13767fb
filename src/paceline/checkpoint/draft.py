"""The MTP modules of a directory, whichever it is: the target's own checkpoint, another one, or an export of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from paceline.checkpoint.layouts import SHARED, find_modules, find_part, layout_name, layout_of
from paceline.checkpoint.load import COMPLETE
from paceline.checkpoint.map import not_of_target
from paceline.checkpoint.reader import Checkpoint
from paceline.config import ModelConfig
from paceline.errors import UserError
from paceline.formats import owner

MAIN_SHARED = ("model.embed_tokens.weight", "lm_head.weight")
# What a module has in common with the target it was trained on, besides its family.
_COMMON = (
    "hidden_size", "vocab_size", "intermediate_size", "moe_intermediate_size", "n_routed_experts", "num_experts",
    "n_shared_experts", "num_experts_per_tok", "num_attention_heads", "num_key_value_heads", "q_lora_rank",
    "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
)  # fmt: skip


class Draft:
    """`modules`: (depth, part) to tensor name, block scales included; `num_modules`: as many as there are tensors for,
    or as config.json promises, whichever is more.

    Raises UserError for a directory without modules, or with those of another model than `target`."""

    def __init__(self, directory: str | Path, target: ModelConfig) -> None:
        self.target, self.checkpoint = target, Checkpoint(directory)
        self.layout = layout_of(self.checkpoint)
        config = ModelConfig.from_dir(directory)
        _same_model(self.checkpoint.directory, config, target, self.layout)
        self.modules = find_modules(self.checkpoint, target)
        self._where = {name: where for where, name in self.modules.items()}
        self.num_modules = max(config.num_nextn_predict_layers, self._count())
        if not self.num_modules:
            raise UserError(
                f"{directory} has no MTP modules: name a checkpoint or an export that has them as draft model, or use "
                "--drafter ngram or none."
            )

    def _count(self) -> int:
        """The modules there are, depths 0, 1, ... without a gap, whatever number a hostile name holds."""
        depths = {depth: name for (depth, _), name in self.modules.items()}
        for number, depth in enumerate(sorted(depths)):
            if number != depth:
                raise UserError(
                    f"{self.checkpoint.directory} has no MTP module {number} before {depths[depth]}: {COMPLETE}."
                )
        return len(depths)

    def name(self, full: str) -> str:
        """What a module's tensor that a full checkpoint calls `full` is called here, be it there or not."""
        where = find_part("original", full, self.target)
        assert where is not None, f"{full} is no module's"
        return layout_name(self.layout, *where, self.target)

    def shared(self) -> dict[str, str]:
        """Tensor name to its part, of every copy of the target's embedding and head."""
        found = {name: part for (_, part), name in self.modules.items() if part in SHARED}
        outer = {name: part for name, part in zip(MAIN_SHARED, SHARED, strict=True) if name in self.checkpoint}
        return {name: part for name, part in outer.items() if not not_of_target(name, self.target)} | found

    def unused(self, name: str, num_modules: int, of_target: Collection[str]) -> bool:
        """Whether a tensor may lie here though the first `num_modules` modules have no place for it: it is a further
        module's, a copy of the target's, or the other part of a full checkpoint (of_target: the target's names)."""
        whole = owner(name)
        if name in self._where:
            depth, part = self._where[name]
            return depth >= num_modules or owner(part) in SHARED or part.endswith("rotary_emb.inv_freq")
        full = self.layout == "original" and (whole in of_target or not_of_target(name, self.target))
        return full or whole in MAIN_SHARED


def _same_model(directory: Path, draft: ModelConfig, target: ModelConfig, layout: str) -> None:
    """The block of a module is of the target's own kind and size. Exports count their own layers, full ones do not."""
    ours, theirs = target.raw, dict(draft.raw) | dict(model_type=draft.model_type.removesuffix("_mtp"))
    compared = ("model_type", *_COMMON, *(["num_hidden_layers"] if layout == "original" else []))
    for name in compared:
        if name in ours and name in theirs and ours[name] != theirs[name]:
            raise UserError(
                f"{directory} is the draft of another model: its {name} is {theirs[name]!r}, the target's "
                f"{ours[name]!r}; use the MTP modules that came with the target."
            )
