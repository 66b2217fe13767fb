"""What the MTP modules run in: asked for, as the target, or chosen; and that the text does not depend on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import MTP_FAMILIES, write_tiny
from paceline.drafters.mtp import MTPDrafter
from paceline.kernels import native
from paceline.llm import LLM
from paceline.models.mtp import MTP
from paceline.request import SamplingParams
from paceline.runtime.build import load_mtp, load_target

ONE_CALL: dict[str, Any] = {"kv_lora_rank": 256, "qk_rope_head_dim": 32, "n_group": 1, "num_nextn_predict_layers": 2}
COMPILED = hasattr(native.library(), "mtp_module")
needs_calls = pytest.mark.skipif(not COMPILED, reason="this CPU has no bf16 products of our own")
WORDS = ("auto", "int8", "fp8", "none", None)


@pytest.fixture(scope="module")
def one_call(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "one", **ONE_CALL)


def mtp_of(llm: LLM) -> MTP:
    assert isinstance(llm.engine.drafter, MTPDrafter)
    return llm.engine.drafter.mtp


@needs_calls
@pytest.mark.parametrize("target", ["none", "int8"])
def test_the_text_is_the_targets_whatever_the_modules_run_in(one_call: Path, target: str) -> None:
    """And the statistics say what that is."""
    llm = LLM(one_call, quantization=target, drafter="none")
    runs_in = {"auto": "int8", "int8": "int8", "fp8": "fp8", "none": "none", None: target}
    for heat in (0.0, 0.8):
        params = SamplingParams(max_tokens=16, temperature=heat, seed=3)
        expected = llm.generate("the quick brown fox", params)[0].outputs[0].token_ids
        for word in WORDS:
            fast = llm.with_options(drafter="mtp", num_speculative_tokens=3, draft_quantization=word)
            assert mtp_of(fast).codes == (word in ("auto", "int8"))
            assert fast.engine.stats.as_dict()["speculation"]["draft_quantization"] == runs_in[word]
            assert fast.generate("the quick brown fox", params)[0].outputs[0].token_ids == expected


@needs_calls
def test_modules_share_the_codes_of_a_shared_head(one_call: Path) -> None:
    modules = mtp_of(LLM(one_call, drafter="mtp")).depths
    assert len({module._head.data_ptr() for module in modules}) == 1 < len(modules)  # type: ignore[union-attr, operator]


@needs_calls
def test_what_was_loaded_stays_as_it_was(one_call: Path) -> None:
    """Only copies are codes."""
    target = load_target(one_call)
    plain, coded = (load_mtp(one_call, target, quantization=word).weights() for word in ("none", "auto"))
    assert plain.keys() == coded.keys() and all(torch.equal(plain[name], coded[name]) for name in plain)


@pytest.mark.parametrize("changes", [{}, MTP_FAMILIES["glm4_moe"], MTP_FAMILIES["mimo"]], ids=["heads", "glm", "mimo"])
def test_other_modules_follow_the_target(changes: dict[str, Any], tmp_path: Path) -> None:
    target = load_target(write_tiny(tmp_path / "m", **changes))
    for word, kept in (("auto", "none"), (None, "none"), ("int8", "int8"), ("fp8", "fp8")):
        mtp = load_mtp(tmp_path / "m", target, quantization=word)
        assert not mtp.codes and mtp.quantization == kept


def test_other_numbers_follow_the_target(one_call: Path) -> None:
    mtp = load_mtp(one_call, load_target(one_call, dtype="float32"), quantization="auto")
    assert not mtp.codes and mtp.quantization == "none"


def test_no_drafter_runs_in_nothing(one_call: Path) -> None:
    for drafter, kind in (("none", None), ("ngram", None), ("ngram,mtp", "int8" if COMPILED else "none")):
        assert LLM(one_call, drafter=drafter).engine.stats.draft_quantization == kind
