"""The commands as a user meets them: what they print, and one sentence and exit code 2 for every mistake."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from conftest import write_tiny
from paceline.cli import main as cli
from paceline.cli.options import Drafting, Lookup, Modules, Sizes
from paceline.config import MAX_SPECULATIVE_TOKENS, EngineConfig


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def paceline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line in this process."""

    def run(*words: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["paceline", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, out, err)

    return run


def test_json_lines_have_the_named_fields(paceline: Run, tiny_model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two"}\n\n{"messages": [{"role": "user", "content": "hi\\u2028there"}]}\n')
    result = paceline(
        "generate", "--model", tiny_model, "--prompts-file", prompts, "--json", "--max-tokens", "6", "-k", "2"
    )
    assert result.code == 0
    rows = [json.loads(line) for line in result.out.split("\n") if line]
    assert [row["prompt"] for row in rows] == ["one two", [{"role": "user", "content": "hi\u2028there"}]]
    for row in rows:
        assert len(row["token_ids"]) == row["usage"]["completion_tokens"] <= 6 and row["finish_reason"] in (
            "stop",
            "length",
        )
        assert row["usage"]["prompt_tokens"] > 0 and row["text"] is not None
        assert row["speculation"].keys() == {
            "drafter", "num_speculative_tokens", "verifications", "drafted", "accepted", "acceptance_rate",
            "acceptance_length", "acceptance_by_position", "mean_width", "width_histogram", "forced",
        }  # fmt: skip
        assert (row["speculation"]["drafter"], row["speculation"]["num_speculative_tokens"]) == ("mtp", 2)
        assert row["timing"].keys() == {"ttft_ms", "tpot_ms", "tokens_per_second"}


def test_text_is_the_same_with_and_without_json(paceline: Run, tiny_model: Path) -> None:
    words = ("generate", "one two", "--model", tiny_model, "--max-tokens", "8", "--temperature", "0.7", "--seed", "5")
    streamed, plain = paceline(*words), paceline(*words, "--drafter", "none", "--json")
    assert streamed.code == plain.code == 0
    assert streamed.out == json.loads(plain.out)["text"] + "\n"


def test_raw_and_chat_are_different_prompts(paceline: Run, tiny_model: Path) -> None:
    words = ("generate", "one", "--model", tiny_model, "--max-tokens", "2", "--json")
    counts = [
        json.loads(paceline(*words, *flag).out)["usage"]["prompt_tokens"] for flag in ((), ("--chat",), ("--raw",))
    ]
    assert counts[0] == counts[1] > counts[2]


def test_answers_have_the_form_that_was_asked_for(paceline: Run, tiny_model: Path, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text('{"enum": [{"a": 1}]}')
    grammar.write_text('root ::= "one" (" two")*')
    words = ("generate", "hi", "--model", tiny_model)
    for file_or_text in (schema, schema.read_text()):
        assert json.loads(paceline(*words, "--json-schema", file_or_text).out) == {"a": 1}
    assert paceline(*words, "--choice", "one", "--choice", "six words").out in ("one\n", "six words\n")
    assert set(paceline(*words, "--regex", "[ab]{7}").out) <= set("ab\n")
    for file_or_text in (grammar, grammar.read_text()):
        found = paceline(*words, "--grammar", file_or_text, "--max-tokens", "9").out
        assert found.startswith("one") and not found.removeprefix("one").strip().replace("two", "").strip()


MISTAKES = [
    (["hi", "--prompts-file", "x.txt"], "exclude each other"),
    (["hi", "--chat", "--raw"], "exclude each other"),
    (["hi", "--drafter", "none", "-k", "2"], "leave -k out"),
    (["hi", "--ngram-min", "2"], "--ngram-min belongs to --drafter ngram"),
    (["hi", "--drafter", "none", "--mtp-modules", "1"], "--mtp-modules belongs to --drafter mtp"),
    (["hi", "--drafter", "ngram", "--draft-model", "x"], "--draft-model belongs to --drafter mtp"),
    (["hi", "--draft-model", "no/such/place"], "no model directory no/such/place"),
    (["hi", "--mtp-modules", "3"], "the model has 2"),
    (["hi", "--num-blocks", "100000000000"], "memory"),
    (["hi", "--logit-bias", '{"5": NaN}'], "logit_bias"),
    (["hi", "--drafter", "ngram", "--ngram-min", "5", "--ngram-max", "3"], "ngram_max"),
    (["hi", "--drafter", "nothing"], "'nothing' is not known"),
    (["hi", "-k", "99"], "num_speculative_tokens"),
    (["hi", "-k", "-1"], "num_speculative_tokens"),
    (["hi", "--top-p", "2"], "top_p"),
    (["hi", "--logit-bias", "{"], "--logit-bias"),
    (["hi", "--logit-bias", '{"100000": 1}'], "100000"),
    (["hi", "--logprobs", "2"], "--json"),
    (["hi", "--dtype", "int3"], "int3"),
    (["hi", "--device", "abacus"], "abacus"),
    (["hi", "--max-model-len", "100000"], "256"),
    (["hi", "--num-blocks", "1"], "blocks"),
    (["hi", "--num-scheduler-steps", "0"], "num_scheduler_steps"),
    (["word " * 300], "shorten"),
    ([], "nothing to do"),
    ([""], "empty"),
    (["--prompts-file", "absent.txt"], "absent.txt"),
    (["hi", "--regex", "a", "--choice", "b"], "exclude each other"),
    (["hi", "--regex", "("], "unclosed group"),
    (["hi", "--json-schema", "absent.json"], "absent.json"),
    (["hi", "--json-schema", "{"], "JSON schema"),
    (["hi", "--grammar", "/dev/null"], "grammar"),
    (["hi", "--regex", "a+", "--ignore-eos"], "ignore_eos"),
]


@pytest.mark.parametrize(
    ("words", "said"), MISTAKES, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_a_mistake_is_one_sentence(paceline: Run, tiny_model: Path, words: list[str], said: str) -> None:
    result = paceline("generate", *words, "--model", tiny_model)
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("paceline: ") and result.err.count("\n") == 1 and said in result.err


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"prompt": ',
        '{"prompt": 3}',
        "[]",
        "{}",
        '{"prompt": "a", "messages": []}',
        '{"messages": [{}]}',
    ],
)
def test_a_bad_line_is_named(paceline: Run, tiny_model: Path, tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    result = paceline("generate", "--prompts-file", path, "--model", tiny_model)
    assert result.code == 2 and f"{path}:2: " in result.err and result.out == ""


@pytest.mark.parametrize(
    "words", [["generate", "hi", "--bogus"], ["nonsense"], ["generate", "hi", "--max-tokens", "many"]]
)
def test_bad_usage_is_exit_2(paceline: Run, words: list[str]) -> None:
    assert paceline(*words).code == 2


def test_a_missing_model_is_named(paceline: Run, tmp_path: Path) -> None:
    result = paceline("generate", "hi", "--model", tmp_path / "gone")
    assert result.code == 2 and "gone" in result.err


def test_an_interrupt_is_exit_130(paceline: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("paceline.llm.LLM.stream", interrupt)
    assert paceline("generate", "hi", "--model", tiny_model).code == 130


def test_files_as_other_systems_write_them(paceline: Run, tiny_model: Path, tmp_path: Path) -> None:
    """A byte order mark and carriage returns are no part of a prompt, and a suffix may be in capitals."""
    words = ("--model", tiny_model, "--json", "--max-tokens", "1", "--raw")
    for name, content in (("a.txt", "one\r\ntwo\r\n"), ("b.JSONL", '{"prompt": "one"}\r\n{"prompt": "two"}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        result = paceline("generate", "--prompts-file", tmp_path / name, *words)
        assert [json.loads(line)["prompt"] for line in result.out.splitlines()] == ["one", "two"], result.err


def test_a_model_without_mtp_is_verified_with_other_drafters(paceline: Run, tmp_path: Path) -> None:
    bare = write_tiny(tmp_path / "bare", num_nextn_predict_layers=0)
    words = ("verify-lossless", "--quick", "--model", bare, "--prompts", "1", "--max-tokens", "2", "--seeds", "0")
    result = paceline(*words, "--drafter", "ngram")
    assert result.code == 0 and "differences: 0" in result.out
    assert paceline(*words, "--drafter", "mtp").code == 2


def test_mistakes_of_other_commands(paceline: Run, tiny_model: Path) -> None:
    for words, said in (
        (("verify-lossless", "--quick", "--drafter", "mtp", "--drafter", "foo"), "no drafter foo"),
        (("verify-lossless", "--drafter", "ngram", "--draft-model", "x"), "--draft-model belongs to --drafter mtp"),
        (("bench", "--drafter", "ngram", "--mtp-modules", "1"), "belongs to --drafter mtp"),
    ):
        result = paceline(*words, "--model", tiny_model)
        assert result.code == 2 and said in result.err and result.out == ""


def test_verify_lossless_and_demo_and_bench_run(paceline: Run, tiny_model: Path, tmp_path: Path) -> None:
    model = ("--model", tiny_model)
    result = paceline("verify-lossless", "--quick", *model, "--prompts", "2", "--max-tokens", "4", "--drafter", "mtp")
    assert result.code == 0 and "differences: 0" in result.out
    picture = tmp_path / "demo.svg"
    words = ("--prompts", "2", "--max-tokens", "6", "--repeats", "1")
    result = paceline("demo", *model, *words, "--svg", picture)
    assert (
        result.code == 0 and "same tokens" in result.out and "yes" in result.out and "acceptance length" in result.out
    )
    assert picture.read_text().startswith("<svg") and str(tmp_path) not in picture.read_text()
    result = paceline(
        "bench", *model, "--prompts", "3", "--timed-prompts", "1", "--max-tokens", "4", "--repeats", "1", "--json"
    )
    assert result.code == 0 and json.loads(result.out)["speed"]["same_tokens"] is True


def test_help_tells_the_defaults_that_hold() -> None:
    """The engine's options show their defaults as text; they must be those of EngineConfig."""
    known = {field.name: field.default for field in dataclasses.fields(EngineConfig)}
    offered = {name for group in (Drafting, Modules, Lookup, Sizes) for name in group.__annotations__}
    assert offered - {"speculative_config", "no_prefix_cache"} | {"enable_prefix_caching"} == known.keys()
    command = typer.main.get_command(cli.make_app()).commands["generate"]  # type: ignore[attr-defined]
    shown = {option.name: option.show_default for option in command.params}
    (k,) = [option.help for option in command.params if option.name == "num_speculative_tokens"]
    assert k.endswith(f"0 to {MAX_SPECULATIVE_TOKENS}.")
    for name, default in known.items():
        if default is not None and name != "enable_prefix_caching":
            assert shown[name] == str(default), name


def test_help_and_version_are_quick_and_light() -> None:
    """No torch, no transformers before a command runs; and a command line imports its own command only."""
    code = (
        "import atexit, sys; sys.argv = ['paceline', *sys.argv[1:]]\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from paceline.cli.main import main\n"
        "main()"
    )
    for words in (["--help"], ["--version"], ["inspect", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        assert "paceline" in done.stdout.lower()
        loaded = set(done.stderr.split())
        assert "paceline.cli.main" in loaded and not {"torch", "transformers", "tokenizers"} & loaded
        assert ("paceline.cli.inspect" in loaded) == ("--version" not in words)
        assert ("paceline.cli.serve" in loaded) == (words == ["--help"])


def test_every_command_is_found_by_its_name(paceline: Run) -> None:
    """Also one by one, as `main` does it; and only what is no command brings them all, to name those meant."""
    for name in cli.COMMANDS:
        group = typer.main.get_command(cli.make_app([name]))
        assert list(group.commands) == [name]  # type: ignore[attr-defined]
    assert set(typer.main.get_command(cli.make_app()).commands) == set(cli.COMMANDS)  # type: ignore[attr-defined]
    assert cli.asked(["inspect", "--help"]) == ["inspect"] and cli.asked(["--version"]) == []
    assert paceline("inspekt").code == 2
