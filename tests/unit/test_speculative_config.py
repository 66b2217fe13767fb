"""vLLM's two ways to ask for speculation become our options, or one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import write_tiny
from paceline import LLM, SamplingParams, UserError
from paceline.cli import main as cli
from paceline.config import EngineConfig
from paceline.speculative_config import older_options, parse_speculative_config, speculation_options, translated

MTP, NGRAM = {"drafter": "mtp"}, {"drafter": "ngram"}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"method": "mtp", "num_speculative_tokens": 1}, MTP | {"num_speculative_tokens": 1}),
        ({"method": "deepseek_mtp"}, MTP),
        ({"model": "D", "quantization": "fp8"}, MTP | {"draft_model": "D", "draft_quantization": "fp8"}),
        ({"method": "mtp", "model": None}, MTP),
        ({"method": "ngram", "prompt_lookup_max": 4}, NGRAM | {"ngram_max": 4, "ngram_min": 4}),
        (
            {"model": "[ngram]", "prompt_lookup_max": 4, "prompt_lookup_min": 2},
            NGRAM | {"ngram_max": 4, "ngram_min": 2},
        ),
        ({"method": "ngram", "prompt_lookup_min": 3}, NGRAM | {"ngram_max": 3, "ngram_min": 3}),
        ({"method": "none"}, {"drafter": "none", "num_speculative_tokens": 0}),
    ],
)
def test_the_current_way(config: dict[str, Any], options: dict[str, Any]) -> None:
    assert speculation_options(config) == options


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        (
            {"speculative_model": "D", "num_speculative_tokens": 5},
            MTP | {"draft_model": "D", "num_speculative_tokens": 5},
        ),
        (
            {"speculative_model": "[ngram]", "num_speculative_tokens": 5, "ngram_prompt_lookup_max": 4},
            NGRAM | {"num_speculative_tokens": 5, "ngram_max": 4, "ngram_min": 1},
        ),
    ],
)
def test_the_older_way(keywords: dict[str, Any], options: dict[str, Any]) -> None:
    assert older_options(keywords) == options
    assert translated({"block_size": 8, **keywords}, vars(EngineConfig())) == {"block_size": 8} | options


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"speculative_model": "[eagle]E", "num_speculative_tokens": 5}, "'eagle' has no drafter here"),
        ({"speculative_config": {"method": "medusa"}}, "'medusa' has no drafter here"),
        ({"speculative_config": {"methods": "mtp"}}, "no key 'methods'"),
        (
            {"speculative_config": {"method": "mtp", "prompt_lookup_max": 4}},
            "prompt_lookup_max belongs to method ngram",
        ),
        ({"speculative_config": {"method": "ngram", "model": "D"}}, "model belongs to method mtp"),
        ({"speculative_config": {"num_speculative_tokens": "5"}}, "must be a whole number"),
        ({"speculative_config": {"num_speculative_tokens": True}}, "must be a whole number"),
        ({"speculative_config": {"method": ["mtp"]}}, "must be text"),
        ({"speculative_config": [1]}, "must be a mapping"),
        ({"ngram_prompt_lookup_max": 4}, "takes a speculative_model"),
        ({"speculative_model": "D", "speculative_config": {}}, "exclude each other"),
        ({"drafter": "ngram", "speculative_config": {"method": "mtp"}}, "drafter is 'ngram'"),
        (
            {"num_speculative_tokens": 3, "speculative_config": {"num_speculative_tokens": 2}},
            "num_speculative_tokens is 3",
        ),
    ],
)
def test_what_is_refused(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        translated(keywords, vars(EngineConfig()))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"mtp"', "[" * 100_000])
def test_what_is_no_object(text: str) -> None:
    with pytest.raises(UserError, match="takes a JSON object"):
        parse_speculative_config(text)


def test_other_keywords_stay_as_they_are() -> None:
    options = {"drafter": "ngram", "num_speculative_tokens": 3}
    assert translated(options, vars(EngineConfig())) == options


def test_llm_takes_both_ways(tiny_model: Path) -> None:
    current = LLM(tiny_model, speculative_config={"method": "mtp", "num_speculative_tokens": 1})
    assert (current.drafter, current.num_speculative_tokens) == ("mtp", 1)
    older = LLM(tiny_model, speculative_model="[ngram]", num_speculative_tokens=5, ngram_prompt_lookup_max=4)
    assert (older.drafter, older.config.ngram_min, older.config.ngram_max) == ("ngram", 1, 4)
    params = SamplingParams(max_tokens=8)
    changed = current.with_options(speculative_config={"method": "none"})
    assert (changed.drafter, changed.num_speculative_tokens) == ("none", 0)
    texts = [llm.generate("one two", params)[0].outputs[0].text for llm in (current, older, changed)]
    assert len(set(texts)) == 1
    with pytest.raises(UserError, match="'eagle' has no drafter"):
        LLM(tiny_model, speculative_model="[eagle]E", num_speculative_tokens=5)


def test_a_language_model_is_no_draft_yet(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", num_nextn_predict_layers=0)
    with pytest.raises(UserError, match="has no MTP modules"):
        LLM(tiny_model, speculative_model=str(other), num_speculative_tokens=5)


def paceline(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["paceline", "generate", "one two", "--max-tokens", "4", "--json", *words])
        cli.main()
    assert (ended.value.code or 0) in (0, 2)


def test_the_command_takes_json(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}'
    paceline("--model", str(tiny_model), "--speculative-config", config)
    speculation = json.loads(capsys.readouterr().out)["speculation"]
    assert (speculation["drafter"], speculation["num_speculative_tokens"]) == ("ngram", 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (['{"method": "ngram"}', "--drafter", "mtp"], "--drafter and --speculative-config exclude each other"),
        (['{"method": "ngram"}', "-k", "2"], "--num-speculative-tokens and --speculative-config exclude each other"),
        (['{"method": "ngram"}', "--mtp-modules", "2"], "--mtp-modules belongs to --drafter mtp"),
        (['{"method": "eagle3"}'], "'eagle3' has no drafter here"),
        (["{"], "takes a JSON object"),
    ],
)
def test_the_command_refuses_in_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    paceline("--speculative-config", *words)
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
