"""Promise 1 with quantised weights: the same tokens whoever drafts, how much, and in which batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conftest import MTP_FAMILIES, write_tiny
from paceline.assets import heldout_prompts
from paceline.bench.lossless import QUICK, matrix, verify_lossless
from paceline.kernels import native
from paceline.llm import LLM

PROMPTS = ["one two three four", "the quick brown fox jumps over", "how many words are in this list: one two one"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "quantization"), [*((family, "int8") for family in MTP_FAMILIES), ("deepseek_v3", "fp8")]
)
def test_tiny_models(family: str, quantization: str, tmp_path: Path) -> None:
    llm = LLM(write_tiny(tmp_path / "tiny", **MTP_FAMILIES[family]), quantization=quantization)
    report = verify_lossless(llm, PROMPTS * 2, matrix(replace(QUICK, max_tokens=24, lengths=(3,), batches=(4,))))
    assert report.differences == []
    assert report.accepted > 0 and report.prefix_hit_tokens > 0 and report.preemptions > 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["as it runs here", "plain torch"])
def test_the_bundled_model_in_int8(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "plain torch":
        monkeypatch.setattr(native, "library", lambda: None)
    prompts = [prompt.content for prompt in heldout_prompts()[: QUICK.prompts]]
    arms = [arm for arm in matrix(replace(QUICK, lengths=(3,))) if arm.drafter != "ngram"]
    report = verify_lossless(LLM(quantization="int8"), prompts, arms)
    assert report.differences == []
    assert report.accepted > 100 and report.prefix_hit_tokens > 0 and report.preemptions > 0
