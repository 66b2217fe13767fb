"""The tables of other systems' flags, and the parser that reads command lines by them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.compat import export_model, paddlenlp, xllm
from paceline.compat.describe import help_text, markdown, meaning
from paceline.compat.flags import TRUTH, Flag, read_line
from paceline.config import EngineConfig
from paceline.errors import UserError
from paceline.request import SamplingParams

FLAGS = (
    Flag("size", int, to="block_size", default=64),
    Flag("share", float),
    Flag("mode", words={"a": 1, "b": 2, "": 0}, to="way"),
    Flag("graph", bool, fits=(False,), note="there are no graphs"),
    Flag("nodes", int, fits=(1,), refuse="there is one node"),
    Flag("shape", tuple, fits=((128, 128),), refuse="blocks are 128 x 128"),
    Flag("name"),
)
TABLES = {"xLLM": xllm.FLAGS, "PaddleNLP": paddlenlp.FLAGS, "PaddleNLP's export": export_model.FLAGS}


@pytest.mark.parametrize(
    "words",
    [
        "--size 8 --graph --name x",
        "--size=8 --graph=true --name=x",
        "-size 8 -graph 1 -name x",
        "--graph True --name x --size=8",
        "--name x --size 8 --size 8 --graph yes",
    ],
)
def test_all_spellings_are_one(words: str) -> None:
    line = read_line(words.split(), FLAGS, "Other")
    assert line.given == {"size": 8, "graph": True, "name": "x"}
    assert line.notes == ["--graph=true: there are no graphs."]


def test_values() -> None:
    line = read_line(["--shape", "128", "128", "--nographs", "--share", "-0.5"], (*FLAGS, Flag("graphs", bool)), "O")
    assert line.given == {"shape": (128, 128), "graphs": False, "share": -0.5}
    assert read_line(["--name", "-1"], FLAGS, "O").given == {"name": "-1"}
    assert read_line(["--a-b", "-1"], (Flag("a_b", int),), "O").given == {"a_b": -1}
    assert read_line(["--name="], FLAGS, "O").given == {"name": ""}
    assert read_line(["--name=a=b"], FLAGS, "O").given == {"name": "a=b"}
    assert read_line(["--shape=[128, 128]"], FLAGS, "O").given == {"shape": (128, 128)}


def test_options_take_the_defaults_of_there() -> None:
    assert read_line([], FLAGS, "O").options() == {"block_size": 64}
    assert read_line(["--mode", "b"], FLAGS, "O").options() == {"block_size": 64, "way": 2}
    assert read_line(["--mode="], FLAGS, "O").options() == {"block_size": 64, "way": 0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--sise 8", "Other's flag --sise is not known here; did you mean --size?"),
        ("--qqqq", "--help lists"),
        ("8", "'8' follows no flag"),
        ("--graph 1 2", "'2' follows no flag"),
        ("--", "follows no flag"),
        ("--size", "--size lacks its value"),
        ("--size --graph", "--size lacks its value"),
        ("--size x", "--size takes a whole number"),
        ("--size 1.5", "--size takes a whole number"),
        ("--share x", "--share takes a number"),
        ("--share nan", "--share takes a number"),
        ("--graph=maybe", "--graph takes true or false"),
        ("--mode c", "--mode 'c' is not known here; use one of a, b."),
        ("--nodes 2", "--nodes=2 cannot be had: there is one node."),
        ("--shape 64 64", "--shape=64,64 cannot be had"),
        ("--size 8 --size 9", "--size is given twice"),
        ("--size " + "9" * 5000, "--size takes a whole number"),
    ],
)
def test_a_mistake_is_one_sentence(words: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        read_line(words.split(), FLAGS, "Other")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


NAMES = [f"--{flag.name}" for flags in TABLES.values() for flag in flags]


WORDS = st.sampled_from(NAMES) | st.lists(st.sampled_from("-=no_1ae\u00e9 "), max_size=6).map("".join)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=6))
def test_any_line_is_read_or_refused(words: list[str]) -> None:
    for system, flags in TABLES.items():
        try:
            line = read_line(words, flags, system)
        except UserError:
            continue
        assert len(line.given) <= len(words)


@pytest.mark.parametrize("flags", TABLES.values(), ids=TABLES)
def test_no_flag_is_silently_ignored(flags: tuple[Flag, ...]) -> None:
    """Each has an option of ours, or a word on what it does, or what is said of it; and every option there is."""
    ours = {field.name for field in (*fields(EngineConfig), *fields(SamplingParams))}
    others = {"model", "dtype", "draft_model", "quantization", "draft_quantization"}
    assert len({flag.name for flag in flags}) == len(flags)
    for flag in flags:
        assert meaning(flag), flag.name
        assert not (flag.note and flag.refuse), flag.name
        assert not flag.to or flag.to in ours | others, flag.name
        assert not (flag.note + flag.refuse).endswith("."), flag.name


@pytest.mark.parametrize("flags", TABLES.values(), ids=TABLES)
def test_what_is_said_is_said_of_every_value_that_does_not_fit(flags: tuple[Flag, ...]) -> None:
    samples = {int: "7", float: "0.125", bool: "true", str: "zzz", tuple: "3"}
    for flag in flags:
        words = [f"--{flag.name}={next(iter(flag.words)) if flag.words else samples[flag.kind]}"]
        if flag.read(words[0].partition("=")[2]) in flag.fits:
            words = [f"--{flag.name}={'false' if flag.kind is bool else [*(flag.words or 'x')][-1]}"]
        if flag.refuse:
            with pytest.raises(UserError, match="cannot be had"):
                read_line(words, flags, "S")
        elif flag.note:
            assert len(read_line(words, flags, "S").notes) == 1


def test_help_lists_every_flag() -> None:
    for flags in TABLES.values():
        text = help_text("usage", flags)
        assert all(f"  --{flag.name} " in text for flag in flags)
        assert max(map(len, text.split("\n"))) < 200


def test_the_page_is_written_from_the_tables() -> None:
    """`python tools/compat_docs.py` writes it anew."""
    page = (Path(__file__).parents[2] / "docs" / "compat.md").read_text(encoding="utf-8")
    for flags in TABLES.values():
        assert markdown(flags) in page


def test_words_of_truth() -> None:
    assert all(Flag("f", bool).read(word.upper()) is truth for word, truth in TRUTH.items())


@pytest.mark.parametrize("module", ["xllm", "predictor", "export_model"])
def test_help_is_quick_and_light(module: str) -> None:
    """As `python -m`: exit 0, and no torch before there is something to do."""
    code = (
        f"import sys; from paceline.compat.{module} import run\n"
        "run(['--help']); sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "--block_size" in done.stdout, done.stderr


def test_a_mistake_is_exit_2() -> None:
    words = [sys.executable, "-m", "paceline.compat.predictor", "--modle_name_or_path", "M"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "paceline: PaddleNLP's flag --modle_name_or_path is not known here; did you mean --model_name_or_path?\n"
    )
