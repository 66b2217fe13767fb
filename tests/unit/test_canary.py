"""A trained drafter that guesses by chance is told of once, with what to look for; nobody else is."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paceline.assets import heldout_prompts
from paceline.checkpoint.resolve import bundled_model
from paceline.checkpoint.writer import write_checkpoint
from paceline.cli.main import main
from paceline.config import ModelConfig
from paceline.engine.canary import FIRST_DRAFTS, LEAST_SHARE, NONE_OF, Canary
from paceline.errors import PacelineWarning
from paceline.llm import LLM
from paceline.request import SamplingParams, SpeculationStats

AN_ERROR = pytest.mark.filterwarnings("error::paceline.errors.PacelineWarning")
ENOUGH = SamplingParams(max_tokens=FIRST_DRAFTS // 2 + 8, ignore_eos=True)  # a draft that is right saves a next one


def draft_of(directory: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """The bundled model's first module, its tensors changed, as an export."""
    module = "model.layers.8."
    tensors = load_file(bundled_model() / "model.safetensors")
    kept = {name: change(name, tensor) for name, tensor in tensors.items() if name.startswith(module)}
    config = ModelConfig.from_dir(bundled_model()).to_dict() | {"num_nextn_predict_layers": 1}
    return write_checkpoint(directory, kept, config)


def swapped_halves(name: str, tensor: Tensor) -> Tensor:
    return tensor.roll(tensor.shape[1] // 2, 1) if name.endswith("eh_proj.weight") else tensor


def random_module(name: str, tensor: Tensor) -> Tensor:
    kept = tensor.dim() == 1 or "embed" in name or "head.head" in name
    return tensor if kept else (torch.randn(tensor.shape) * tensor.float().std()).to(tensor.dtype)


def stats(offered: int, taken: int) -> SpeculationStats:
    return SpeculationStats(offered=[offered, offered], taken=[taken, 0])


@AN_ERROR
@pytest.mark.parametrize("damage", [swapped_halves, random_module])
def test_damaged_modules_are_told_of_once(tmp_path: Path, damage: Callable[[str, Tensor], Tensor]) -> None:
    draft = draft_of(tmp_path / "draft", damage)
    llm = LLM(draft_model=str(draft), num_speculative_tokens=1, max_num_seqs=2)
    prompts = [prompt.content for prompt in heldout_prompts()[:2]]
    with pytest.warns(PacelineWarning, match=rf"MTP modules of {draft}: eh_proj.*embedding.*scales.*model") as told:
        first = llm.generate(prompts, ENOUGH)
    assert len(told) == 1
    again = llm.generate(prompts, ENOUGH)  # a warning is an error here
    assert [r.outputs[0].token_ids for r in first] == [r.outputs[0].token_ids for r in again]


@AN_ERROR
@pytest.mark.parametrize(
    ("options", "temperature"),
    [({"num_speculative_tokens": 1}, 0.0), ({"num_speculative_tokens": 1}, 1.0), ({"drafter": "ngram"}, 1.0)],
)
def test_good_modules_and_lookups_are_not(options: dict[str, object], temperature: float) -> None:
    llm = LLM(**options)  # type: ignore[arg-type]
    prompts = [prompt.content for prompt in heldout_prompts()[:4]]
    llm.generate(prompts, SamplingParams(max_tokens=64, ignore_eos=True, temperature=temperature, seed=3))
    judged = llm.engine.stats.speculation.offered
    assert "drafter" in options or judged[0] >= FIRST_DRAFTS


@pytest.fixture
def told() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def test_it_waits_for_enough_and_judges_once(told: list[warnings.WarningMessage]) -> None:
    canary = Canary("it")
    canary.look(SpeculationStats())
    canary.look(stats(FIRST_DRAFTS - 1, 1))
    canary.look(stats(NONE_OF - 1, 0))
    assert not told
    canary.look(stats(FIRST_DRAFTS, 1))
    canary.look(stats(FIRST_DRAFTS * 2, 0))
    assert len(told) == 1 and "suspect it" in str(told[0].message)
    Canary("that").look(stats(NONE_OF, 0))
    assert "suspect that" in str(told.pop().message), "drafts that are never right soon rest: few must be enough"
    passed = Canary("it")
    passed.look(stats(FIRST_DRAFTS, round(LEAST_SHARE * FIRST_DRAFTS) + 1))
    passed.look(stats(10 * FIRST_DRAFTS, 0))
    Canary(None).look(stats(FIRST_DRAFTS, 0))
    assert len(told) == 1


@pytest.mark.filterwarnings("default::paceline.errors.PacelineWarning")
def test_a_command_says_it_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = str(draft_of(tmp_path / "draft", swapped_halves))
    words = ["Once upon a time", "--draft-model", draft, "-k", "1", "--max-tokens", "110", "--ignore-eos"]
    monkeypatch.setattr(sys, "argv", ["paceline", "generate", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("paceline: fewer than 1 in 10") and draft in said
