"""The published command lines of xLLM and PaddleNLP, word for word but for paths and lengths, on the bundled model."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paceline import LLM, SamplingParams, UserError
from paceline.checkpoint.resolve import bundled_model
from paceline.cli import main as cli
from paceline.compat import export_model, paddlenlp, predictor, xllm

XLLM = """--model M --devices="npu:0" --port 13222 --master_node_addr=127.0.0.1:42123 --nnodes=16 --draft_model M-mtp
    --draft_devices="npu:0" --num_speculative_tokens 1 --max_memory_utilization=0.90 --max_tokens_per_batch=10000
    --max_seqs_per_batch=256 --enable_mla=true --block_size=128 --ep_size=1 --dp_size=1 --enable_prefix_cache=false
    --enable_chunked_prefill=false --node_rank=0"""
REFERENCE = """--model_name_or_path M --inference_model --dtype float16 --speculate_method inference_with_reference
    --speculate_max_draft_token_num 5 --speculate_max_ngram_size 2"""
DYNAMIC = """--model_name_or_path M --dtype bfloat16 --mode dynamic --inference_model 1 --append_attn 1
    --total_max_length 8192 --quant_type weight_only_int8 --max_length 2048 --speculate_method mtp
    --draft_model_name_or_path M-mtp --speculate_max_draft_token_num 1 --speculate_max_ngram_size 3
    --return_full_hidden_states 1 --mla_use_matrix_absorption 1"""
EXPORT = """--model_name_or_path M --output_path OUT --dtype bfloat16 --inference_model 1 --append_attn 1
    --total_max_length 8192 --quant_type weight_only_int8 --speculate_method inference_with_reference
    --return_full_hidden_states 1 --mla_use_matrix_absorption 1"""
STATIC = """--model_name_or_path OUT --mode static --dtype bfloat16 --inference_model 1 --append_attn 1
    --total_max_length 8192 --max_length 2048 --speculate_method mtp --draft_model_name_or_path M-mtp
    --draft_model_quant_type a8w8_fp8 --quant_type a8w8_fp8 --speculate_max_draft_token_num 1"""
GREEDY = " --decode_strategy greedy_search"


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 requests at a time would have 2 GiB of cache."""
    monkeypatch.setattr("paceline.loaded.POOL_BYTES", 32 << 20)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first published line: tools/export_deepseek_mtp.py --input-dir DIR --output-dir DIR-mtp."""
    directory = tmp_path_factory.mktemp("draft") / "M-mtp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", "--input-dir", str(bundled_model()), "--output-dir", str(directory)])
        with pytest.raises(SystemExit) as ended:
            run_tool("export_deepseek_mtp.py")
    assert not ended.value.code
    return directory


def run_tool(name: str) -> None:
    """A script of tools/, in this process, with the arguments of sys.argv."""
    path = Path(__file__).parents[2] / "tools" / name
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__name__": "__main__"})


@pytest.fixture
def words(draft: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """A published line as a list of words, with directories that are here, and short answers."""
    places = {"M": str(bundled_model()), "M-mtp": str(draft), "OUT": str(tmp_path / "OUT")}

    def adapted(line: str) -> list[str]:
        return [places.get(word, word) for word in shlex.split(line.replace("--max_length 2048", "--max_length 12"))]

    return adapted


@pytest.fixture
def predict(words: Callable[[str], list[str]], tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Runs the predictor on two questions; the rows of its output file."""
    data, output = tmp_path / "data.json", tmp_path / "output.json"
    data.write_text('{"src": "Who are you?", "tgt": "me"}\n{"src": ["hi", "2 + 2?"], "tgt": ["hello"]}\n')

    def run(line: str) -> list[dict[str, Any]]:
        line = line if "--max_length" in line else line + " --max_length 12"
        predictor.run([*words(line), "--data_file", str(data), "--output_file", str(output)])
        return [json.loads(row) for row in output.read_text().splitlines()]

    return run


def weights(directory: Path) -> Path:
    return directory / "model.safetensors"


def plain(question: str, tokens: int) -> str:
    llm = LLM(drafter="none")
    return llm.chat([{"role": "user", "content": question}], SamplingParams(max_tokens=tokens))[0].outputs[0].text


NOTED = [
    "master_node_addr", "nnodes", "max_memory_utilization", "enable_mla", "enable_chunked_prefill", "devices",
]  # fmt: skip


def test_xllm_answers_a_prompt(
    words: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `paceline xllm-compat`: the text of plain decoding on stdout, all that is noted on stderr, a line each."""
    more = ["--prompt", "Who are you?", "--max_tokens", "12"]
    monkeypatch.setattr(sys, "argv", ["paceline", "xllm-compat", *words(XLLM), *more])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    assert out == plain("Who are you?", 12) + "\n"
    assert [line.split("=")[0] for line in err.splitlines() if "note" in line] == [f"note: --{n}" for n in NOTED]
    shown = dict(line.split(None, 1) for line in err.splitlines() if line.startswith("  "))
    expected = {"drafter": "mtp", "num_speculative_tokens": "1", "max_num_seqs": "256", "block_size": "128"}
    assert expected.items() <= shown.items() and shown["draft_model"].endswith("M-mtp")


def test_xllm_starts_the_server(words: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    from paceline.serve.settings import ServerSettings

    started: list[tuple[Path, ServerSettings]] = []
    monkeypatch.setattr("paceline.serve.run.run", lambda *both: started.append(both))
    xllm.run(words(XLLM))
    xllm.run(words("--model M --host 0.0.0.0 --model_id ours --seed 3"))
    (model, settings), (_, other) = started
    _, line = xllm.understand(words("--model M --seed 3"))
    assert line.notes == ["--seed=3: it belongs to --prompt, and requests bring their own."]
    asked, line = xllm.understand(words(XLLM))
    assert model == bundled_model() and settings.options == asked.llm
    assert [note.split("=")[0] for note in line.notes] == [f"--{name}" for name in NOTED]
    assert (settings.host, settings.port, settings.served_names) == ("127.0.0.1", 13222, (str(model),))
    assert (other.host, other.port, other.served_names) == ("0.0.0.0", 8010, ("ours",))


def answer_of(request: urllib.request.Request, tries: int = 200) -> dict[str, Any]:
    """Of a server that has told its address, and will listen in a moment."""
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))
    except urllib.error.URLError:
        if tries == 0:
            raise
        time.sleep(0.05)
        return answer_of(request, tries - 1)


def test_xllm_serves(words: Callable[[str], list[str]]) -> None:
    """The whole of it: a process, a request over HTTP, a signal."""
    pytest.importorskip("uvicorn")
    line = XLLM.replace("--port 13222", "--port 0").replace("--max_seqs_per_batch=256", "--max_seqs_per_batch=2")
    command = [sys.executable, "-m", "paceline.compat.xllm", *words(line)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            url = next(match[0] for text in server.stderr if (match := re.search(r"http://[\d.:]+/v1", text)))
            body = {"model": str(bundled_model()), "prompt": "One two", "max_tokens": 3}
            content = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), content)
            assert answer_of(request)["usage"]["completion_tokens"] == 3
        finally:
            server.terminate()
        assert server.wait(60) == 0


def test_xllm_means_our_options(words: Callable[[str], list[str]], draft: Path) -> None:
    asked, _ = xllm.understand(words(XLLM))
    assert asked.llm == {
        "model": str(bundled_model()), "draft_model": str(draft), "num_speculative_tokens": 1, "drafter": "mtp",
        "block_size": 128, "max_num_batched_tokens": 10000, "max_num_seqs": 256, "enable_prefix_caching": False,
        "device": None,
    }  # fmt: skip


def test_xllm_without_speculation_loads_no_draft(words: Callable[[str], list[str]]) -> None:
    asked, line = xllm.understand(words(XLLM.replace("--num_speculative_tokens 1", "")))
    assert asked.llm["drafter"] == "none" and "draft_model" not in asked.llm
    assert any("--draft_model=" in note and "is 0" in note for note in line.notes)
    asked, line = xllm.understand(words("--model M --num_speculative_tokens 2"))
    assert asked.llm["drafter"] == "mtp" and "own MTP modules" in line.notes[-1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--num_speculative_tokens 1", "--model is missing"),
        ("--model M --speculative_algorithm Eagle3", "'Eagle3' is not known here; use one of MTP"),
        ("--model M --node_rank 1 --nnodes=16", "start rank 0 alone"),
        ("--model M --task embed", "Paceline generates text"),
        ("--model M --max_seq_per_batch 4", "did you mean --max_seqs_per_batch?"),
        ("--model M --num_speculative_tokens 99 --prompt x", "must be auto or lie between 0 and 16"),
        ("--model absent --prompt x", "There is no model directory absent"),
        ("--model M --prompt=", "The prompt is empty"),
        ("--model M --port 70000", "--port must lie between 0 and 65535"),
    ],
)
def test_xllm_refuses_in_one_sentence(words: Callable[[str], list[str]], line: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        xllm.run(words(line))


def test_predictor_with_reference(
    predict: Callable[[str], list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The file, and on stdout what PaddleNLP prints: a heading and a text, three times for each question."""
    rows = predict(REFERENCE)
    headed = [("Who are you?", "me", rows[0]["output"]), ("2 + 2?", "", rows[1]["output"])]
    stars = "*" * 11
    assert capsys.readouterr().out == "".join(
        f"{stars}{heading}{'*' * 10}\n{text}\n"
        for texts in headed
        for heading, text in zip(("Source", "Target", "Output"), texts, strict=True)
    )
    assert [(row["src"], row["tgt"]) for row in rows] == [("Who are you?", "me"), (["hi", "2 + 2?"], ["hello"])]
    assert all(row["output"] for row in rows)


def test_predictor_means_our_options(words: Callable[[str], list[str]], draft: Path) -> None:
    asked, _ = paddlenlp.understand(words(REFERENCE))
    ngrams = {"drafter": "ngram", "num_speculative_tokens": 5, "ngram_max": 2, "ngram_min": 1, "dtype": "float16"}
    assert ngrams.items() <= asked.llm.items()
    asked, line = paddlenlp.understand(words(DYNAMIC))
    assert asked.llm == {
        "model": str(bundled_model()), "dtype": "bfloat16", "quantization": "int8", "drafter": "mtp",
        "num_speculative_tokens": 1, "draft_model": str(draft), "max_model_len": 2048, "max_num_seqs": 1,
        "block_size": 64,
    }  # fmt: skip
    params = asked.params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.min_tokens) == (
        0.95,
        0.7,
        0,
        12,
        1,
    )
    noted = [note.split("=")[0] for note in line.notes]
    assert noted == [
        "--inference_model", "--append_attn", "--return_full_hidden_states", "--mla_use_matrix_absorption",
        "--speculate_max_ngram_size", "--total_max_length",
    ]  # fmt: skip
    asked, line = paddlenlp.understand(words(STATIC.replace("OUT", "M")))
    assert (asked.llm["quantization"], asked.llm["draft_quantization"]) == ("fp8", "fp8")
    assert "--mode=static" in line.notes[0]


def test_predictor_dynamic(predict: Callable[[str], list[dict[str, Any]]]) -> None:
    """An int8 target writes the same text with its MTP modules and without."""
    rows = predict(DYNAMIC + GREEDY)
    assert all(row["output"] for row in rows)
    assert rows == predict(DYNAMIC.replace("--speculate_method mtp", "--speculate_method None") + GREEDY)


@pytest.mark.parametrize("quant", ["weight_only_int8", "a8w8_fp8"])
def test_export_then_predictor_static(
    words: Callable[[str], list[str]], predict: Callable[[str], list[dict[str, Any]]], tmp_path: Path, quant: str
) -> None:
    """Quantised at export or when it is run: the same text. What is quantised already is copied."""
    line = EXPORT.replace("weight_only_int8", quant)
    export_model.run(words(line))
    out, again = tmp_path / "OUT", tmp_path / "OUT-2"
    assert weights(out).stat().st_size < 0.8 * weights(bundled_model()).stat().st_size
    export_model.run(words(line.replace("M --output_path OUT", f"{out} --output_path {again}")))
    assert weights(again).read_bytes() == weights(out).read_bytes()
    static = predict(STATIC.replace("a8w8_fp8", quant) + GREEDY)
    dynamic = predict(STATIC.replace("OUT", "M").replace("a8w8_fp8", quant).replace("static", "dynamic") + GREEDY)
    assert static == dynamic


def test_the_drafter_does_not_change_the_text(predict: Callable[[str], list[dict[str, Any]]]) -> None:
    line = DYNAMIC.replace("--quant_type weight_only_int8", "") + GREEDY
    rows = predict(line)
    for method in ("None", "inference_with_reference"):
        assert predict(line.replace("--speculate_method mtp", f"--speculate_method {method}")) == rows
    assert rows[0]["output"] == plain("Who are you?", 12)


def test_a_plain_export_is_a_copy(words: Callable[[str], list[str]], tmp_path: Path) -> None:
    line = words(EXPORT.replace("--quant_type weight_only_int8", ""))
    export_model.run(line)
    written = {file.name: file.read_bytes() for file in (tmp_path / "OUT").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= written.keys()
    assert all((bundled_model() / name).read_bytes() == content for name, content in written.items())
    with pytest.raises(UserError, match=r"exists and is not empty.*--overwrite"):
        export_model.run(line)


@pytest.mark.parametrize("quant", ["", "--quant_type weight_only_int8"], ids=["a copy", "int8"])
def test_an_export_is_replaced_when_that_is_asked_for(
    words: Callable[[str], list[str]], tmp_path: Path, quant: str
) -> None:
    """By the flag that the refusal names; never its own source, and nothing that is no checkpoint."""
    line, out = EXPORT.replace("--quant_type weight_only_int8", quant) + " --overwrite", tmp_path / "OUT"
    export_model.run(words(line))
    (out / "left").touch()
    export_model.run(words(line))
    assert weights(out).is_file() and not (out / "left").exists()
    with pytest.raises(UserError, match="is or holds the checkpoint that is read"):
        export_model.run(words(line.replace("M --output_path", f"{out} --output_path")))
    (out / "config.json").unlink()
    with pytest.raises(UserError, match="something else than a checkpoint"):
        export_model.run(words(line))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--dtype float16", "--model_name_or_path is missing"),
        ("--model_name_or_path M --speculate_method eagle", "'eagle' is not known here; use one of none, None"),
        ("--model_name_or_path M --quant_type weight_only_int4", "use one of weight_only_int8, a8w8_fp8"),
        ("--model_name_or_path M --decode_strategy beam_search", "'beam_search' is not known here"),
        ("--model_name_or_path M --max_length 5000", "must be below --total_max_length 4096"),
        ("--model_name_or_path M --src_length 0", "--src_length must be at least 1"),
        ("--model_name_or_path M --lora_path x", "adapters are not supported"),
        ("--model_name_or_path M --benchmark", "use `paceline bench`"),
        ("--model_name_or_path M --data_file absent.json", "absent.json cannot be read"),
        ("--model_name_or_path M --output_file absent/x.json", "absent/x.json cannot be written"),
        ("--model_name_or_path M --output_file .", "cannot be written"),
    ],
)
def test_predictor_refuses_in_one_sentence(words: Callable[[str], list[str]], line: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        predictor.run(words(line))


@pytest.mark.parametrize(
    "row",
    ["{", "[]", '{"tgt": "x"}', '{"src": ""}', '{"src": 3}', '{"src": []}', '{"src": ["a", "b"]}', "[" * 100_000],
)
def test_a_bad_row_is_named_and_nothing_is_written(words: Callable[[str], list[str]], tmp_path: Path, row: str) -> None:
    data, output = tmp_path / "data.json", tmp_path / "out.json"
    data.write_text(f'{{"src": "a"}}\n\n{row}\n')
    with pytest.raises(UserError, match=f"{data}:3: "):
        predictor.run([*words("--model_name_or_path M --data_file"), str(data), "--output_file", str(output)])
    assert {path.name for path in tmp_path.iterdir()} == {"data.json"}


def test_turns_take_a_chat_template(predict: Callable[[str], list[dict[str, Any]]]) -> None:
    with pytest.raises(UserError, match="Prompt 2 has several turns, which takes a chat template"):
        predict("--model_name_or_path M --chat_template none")


def test_long_prompts_lose_their_beginning(
    words: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output, text = tmp_path / "data.txt", tmp_path / "out.json", "one two three four five six seven"
    data.write_text(f"{text}\n")
    line = f"--model_name_or_path M --chat_template none --src_length 3 --max_length 6 --data_file {data}" + GREEDY
    predictor.run([*words(line), "--output_file", str(output)])
    assert "of which the last 3 are kept (--src_length)" in capsys.readouterr().err
    llm = LLM(drafter="none")
    (answer,) = llm.generate(llm.tokenizer.encode(text)[-3:], SamplingParams(max_tokens=6))[0].outputs
    assert json.loads(output.read_text())["output"] == answer.text


def test_greedy_in_other_words() -> None:
    """top_p 0 keeps the likeliest token alone; greedy search does not look at the temperature."""
    model = f"--model_name_or_path {bundled_model()}"
    for line in ("--top_p 0", "--decode_strategy greedy_search --temperature 0.5", "--temperature 0"):
        asked, read = paddlenlp.understand(shlex.split(f"{model} {line}"))
        assert asked.params.temperature == 0 and len(read.notes) == (line != "--temperature 0")


def test_lengths() -> None:
    """A prompt may have what the answer leaves of the total, unless src_length says less."""
    model = f"--model_name_or_path {bundled_model()}"
    for line, length in (("", 3072), ("--max_length 100 --total_max_length 500", 400), ("--src_length 7", 7)):
        assert paddlenlp.source_length(paddlenlp.read(shlex.split(f"{model} {line}"))) == length


def test_without_a_method_nobody_drafts() -> None:
    model = f"--model_name_or_path {bundled_model()}"
    asked, line = paddlenlp.understand(shlex.split(f"{model} --speculate_max_draft_token_num 3"))
    assert (asked.llm["drafter"], asked.llm["num_speculative_tokens"]) == ("none", 0)
    assert "--speculate_max_draft_token_num=3" in line.notes[0]


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_without_a_data_file_there_is_a_sample(words: Callable[[str], list[str]], in_tmp: Path) -> None:
    predictor.run(words("--model_name_or_path M --max_length 4"))
    (row,) = [json.loads(line) for line in (in_tmp / "output.json").read_text().splitlines()]
    assert row["src"] and row["tgt"] == ""


def test_what_fails_leaves_the_former_output(words: Callable[[str], list[str]], in_tmp: Path) -> None:
    (in_tmp / "output.json").write_text("former")
    with pytest.raises(UserError):
        predictor.run(words("--model_name_or_path M --device abacus:3 --max_length 4 --block_size 0"))
    assert {path.name: path.read_text() for path in in_tmp.iterdir()} == {"output.json": "former"}


@pytest.mark.parametrize(
    ("devices", "device", "notes"),
    [
        ("cpu", "cpu", 0),
        ("cuda:1", "cuda:1", 0),
        ("gpu:1,gpu:2", "cuda:1", 1),
        ("npu:0", None, 1),
        ("npu:0,npu:1", None, 2),
    ],
)
def test_devices(words: Callable[[str], list[str]], devices: str, device: str | None, notes: int) -> None:
    asked, line = xllm.understand(words(f"--model M --devices={devices}"))
    assert (asked.llm["device"], len(line.notes)) == (device, notes)
    _, line = xllm.understand(words(f"--model M --devices={devices} --draft_devices=cpu"))
    assert len(line.notes) == notes + (devices != "cpu")


@pytest.mark.parametrize("command", [xllm.run, predictor.run, export_model.run])
def test_help_needs_no_model(command: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]) -> None:
    command(["--help"])
    assert "--num_speculative_tokens" in (out := capsys.readouterr().out) or "--speculate_method" in out
