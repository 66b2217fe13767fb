"""`paceline bench table`, `rate`, `compare`, `plot` and `spec-bench` as a user meets them, on a tiny model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from paceline.bench import rows
from paceline.bench.here import in_turns
from paceline.bench.record import model_facts, read_record, write_whole
from paceline.bench.runs import Answer
from paceline.cli import main as cli
from paceline.cli.bench_format import interval, shares
from paceline.errors import UserError

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--dataset", "random", "--input-len", "9", "--output-len", "6", "--arms", "none,2")


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> Run:
    """Runs `paceline bench ...` in this process, on the tiny model where it takes one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(command: str, *words: str | Path) -> tuple[int, str, str]:
        model = () if command == "plot" else ("--model", tiny_model)
        monkeypatch.setattr(sys, "argv", ["paceline", "bench", command, *map(str, (*words, *model))])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return (ended.value.code if isinstance(ended.value.code, int) else 0), out, err

    return run


def test_a_table_is_what_was_asked(bench: Run, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    words = ("--concurrency", "1,3", "--num-requests", "5", "--repeats", "3", "--output", file)
    code, out, _ = bench("table", *SMALL, *words, "--json", "--temperature", "0.8", "--seed", "4")
    record = json.loads(out)
    assert code == 0 and record == read_record(file) | {"seconds": record["seconds"]}
    assert record["complete"] and record["kind"] == "table" and record["settings"]["temperature"] == 0.8
    assert [row["concurrency"] for row in record["rows"]] == [1, 3]
    for row in record["rows"]:
        assert (row["repeats"], row["requests"], row["compared"]) == (3, 5, "token ids")
        for name, arm in row["arms"].items():
            whole = arm["whole"]
            assert (whole["prompt_tokens"], whole["output_tokens"], arm["same"]) == (45, 30, True)
            assert len(arm["by_repeat"]) == 3
            for run in (repeat["whole"] for repeat in arm["by_repeat"]):
                ideal = 1000 * row["concurrency"] / run["tpot_ms"]["mean"]
                assert run["check"] == pytest.approx(run["output_tokens_per_second"] / ideal, rel=1e-4)
            assert set(whole["ttft_ms"]) == set(whole["itl_ms"]) == {"mean", "p50", "p90", "p99"}
            drafted = arm["speculation"]["drafted"]
            assert (drafted > 0) == (name == "2") and sum(arm["speculation"]["width_histogram"]) > 0
        assert row["arms"]["none"]["speedup"]["output"]["median"] == 1.0
        assert row["arms"]["2"]["speedup"]["tpot"]["low"] > 0
    machine, model = record["machine"], record["model"]
    assert machine["threads"] == 1 and machine["versions"]["torch"] and machine["processor"]
    assert len(model["sha256"]) == 64 and model["dtype"] == "bfloat16" and str(tmp_path) not in json.dumps(model)


def test_tables_for_people(bench: Run, tmp_path: Path) -> None:
    words = (*SMALL, "--concurrency", "2", "--num-requests", "3", "--repeats", "1")
    code, out, _ = bench("table", *words)
    assert (code == 0 and "mean TPOT ms" in out.replace("\n", " ")) or "TPOT" in out
    code, out, _ = bench("table", *words, "--markdown")
    heading, rule, line = out.strip().split("\n")
    assert heading.startswith("| concurrency | arms | mean TPOT ms |") and set(rule) == set("| -")
    assert line.startswith("| 2 | none / 2 | ") and line.endswith("| yes |") and line.count("|") == heading.count("|")


def test_auto_is_the_default(bench: Run) -> None:
    words = ("--dataset", "random", "--input-len", "4", "--output-len", "3", "--repeats", "1", "--num-requests", "2")
    code, out, _ = bench("table", *words, "--concurrency", "1", "--json")
    assert code == 0 and list(json.loads(out)["rows"][0]["arms"]) == ["none", "auto"]


def test_a_table_for_each_source(bench: Run, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(f'{{"prompt": "one two", "source": "{name}"}}\n' for name in "abab"))
    words = ("--short", "--dataset", file, "--output-len", "3", "--arms", "none,1", "--repeats", "1")
    words += ("--num-requests", "2")
    code, out, _ = bench("table", *words, "--concurrency", "1,2", "--by-source", "--json")
    rows = [(row["source"], row["concurrency"]) for row in json.loads(out)["rows"]]
    assert code == 0 and rows == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert [level["sources"] for level in json.loads(out)["by_source"]] == [2, 2]
    code, out, _ = bench("table", *words, "--concurrency", "1", "--by-source")
    assert code == 0 and "of plain decoding over 2 sources" in " ".join(out.split())


def test_rates_have_goodput(bench: Run) -> None:
    words = (*SMALL, "--request-rate", "500,1000.5", "--num-requests", "4", "--repeats", "1", "--tpot-ms", "1e9")
    code, out, _ = bench("rate", *words, "--ttft-ms", "1e9", "--json")
    record = json.loads(out)
    assert code == 0 and [row["rate"] for row in record["rows"]] == [500.0, 1000.5]
    for row in record["rows"]:
        for arm in row["arms"].values():
            assert arm["whole"]["share_within_limits"] == 1.0 and arm["whole"]["check"] is arm["steady"] is None
            assert arm["whole"]["goodput"] == pytest.approx(arm["whole"]["requests_per_second"])
    assert bench("rate", *words)[0] == 0


def test_compare_with_transformers(bench: Run) -> None:
    words = (*SMALL, "--num-requests", "2", "--repeats", "1")
    code, out, _ = bench("compare", *words, "--json")
    arms = json.loads(out)["rows"][0]["arms"]
    assert code == 0 and list(arms) == ["transformers", "transformers lookup", "none", "2"]
    assert {arm["whole"]["output_tokens"] for arm in arms.values()} == {12} and arms["2"]["same"]
    code, out, _ = bench("compare", *words, "--no-transformers", "--markdown")
    assert code == 0 and "transformers" not in out


def test_pictures(bench: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"{kind}.json" for kind in ("table", "rate")]
    bench("table", *SMALL, "--concurrency", "1,2", "--num-requests", "3", "--repeats", "2", "--output", files[0])
    bench("rate", *SMALL, "--request-rate", "500,900", "--num-requests", "3", "--repeats", "1", "--output", files[1])
    for file in files:
        code, out, err = bench("plot", file, "--out", tmp_path / "picture")
        assert code == 0, err
        png, svg = (Path(line) for line in out.split("\n")[:2])
        assert png.read_bytes().startswith(b"\x89PNG") and "none" in svg.read_text() and svg.stat().st_size < 200_000
        first = svg.read_bytes()
        bench("plot", file, "--out", tmp_path / "picture")
        assert svg.read_bytes() == first
    code, _, err = bench("plot", *files)
    assert code == 2 and "tables or of rates" in err
    code, out, _ = bench("plot", files[0], "--out", tmp_path / "one.svg")
    assert code == 0 and out.split() == [str(tmp_path / "one.svg")] and not (tmp_path / "one.png").exists()


def test_a_picture_by_source(bench: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data, file = tmp_path / "p.jsonl", tmp_path / "t.json"
    data.write_text("".join(f'{{"prompt": "one two", "source": "{name}"}}\n' for name in ("easy", "hard")))
    words = ("--output-len", "3", "--arms", "none,auto,1", "--repeats", "2", "--num-requests", "2", "--output", file)
    assert bench("table", "--short", "--dataset", data, "--by-source", "--concurrency", "1,2", *words)[0] == 0
    assert bench("plot", file, "--out", tmp_path / "one.svg")[0] == 0
    drawn = (tmp_path / "one.svg").read_text()
    assert all(word in drawn for word in ("easy", "hard", "k = 1", "1 in flight", "2 in flight", "threads 1"))
    other = tmp_path / "other.json"
    other.write_bytes(file.read_bytes())
    code, _, err = bench("plot", file, other, "--out", tmp_path / "two")
    assert code == 2 and "give it alone" in err


def test_a_damaged_record_is_one_sentence(bench: Run, tmp_path: Path) -> None:
    file, rows = (
        tmp_path / "t.json",
        [[], [3], [{}], [{"repeats": 1}], [{"repeats": 1, "concurrency": 1, "arms": {"a": {}}}]],
    )
    for row in rows:
        file.write_text(json.dumps({"format": 1, "kind": "table", "rows": row}))
        code, _, err = bench("plot", file)
        assert code == 2 and err.startswith("paceline: ") and err.count("\n") == 1
    for kind in ("compare", None, []):
        file.write_text(json.dumps({"format": 1, "kind": kind, "rows": []}))
        assert bench("plot", file)[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["one two three", "four five"]},
    {"question_id": 241, "category": "qa", "turns": ["how many words"]},
]


def test_answers_are_what_spec_benchs_scripts_read(bench: Run, tmp_path: Path) -> None:
    """The fields that speed.py and equal.py look at, and what they make of them."""
    file = tmp_path / "question.jsonl"
    file.write_text("\n".join(map(json.dumps, QUESTIONS)))
    code, out, _ = bench(
        "spec-bench", file, "--out", tmp_path / "answers.jsonl", "--arms", "none,3", "--max-tokens", "7"
    )
    assert code == 0 and "yes" in out
    by_arm: dict[str, list[dict[str, Any]]] = {
        arm: [json.loads(line) for line in (tmp_path / f"answers-{arm}.jsonl").read_text().splitlines()]
        for arm in ("none", "3")
    }
    for arm, lines in by_arm.items():
        assert [(line["question_id"], line["category"]) for line in lines] == [(81, "writing"), (241, "qa")]
        for line, question in zip(lines, QUESTIONS, strict=True):
            (choice,) = line["choices"]
            assert choice["index"] == 0 and line["model_id"] == f"tiny-{arm}" and line["answer_id"] and line["tstamp"]
            for name in ("turns", "decoding_steps", "new_tokens", "wall_time"):
                assert len(choice[name]) == len(question["turns"])
            assert all(isinstance(turn, str) for turn in choice["turns"])
            assert sum(choice["new_tokens"]) == sum(choice["accept_lengths"]) and min(choice["wall_time"]) > 0
            assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
    said = {arm: [line["choices"][0]["turns"] for line in lines] for arm, lines in by_arm.items()}
    assert said["none"] == said["3"]


@pytest.mark.filterwarnings("default:left out")
def test_questions_beyond_the_context_are_left_out_by_name(bench: Run, tmp_path: Path) -> None:
    file, out_file = tmp_path / "question.jsonl", tmp_path / "answers.jsonl"
    long = {"question_id": 99, "category": "rag", "turns": ["word " * 300]}
    words = (file, "--out", out_file, "--arms", "none", "--max-tokens", "2")
    file.write_text("\n".join(map(json.dumps, [long, *QUESTIONS])))
    code, _, err = bench("spec-bench", *words)
    assert code == 0 and "left out" in err and "99" in err and err.count("\n") == 1
    assert len((tmp_path / "answers-none.jsonl").read_text().splitlines()) == 2
    file.write_text(json.dumps(long))
    assert bench("spec-bench", *words)[0] == 2


def test_the_answers_of_a_table(bench: Run, tmp_path: Path) -> None:
    words = (
        *SMALL,
        "--concurrency",
        "1",
        "--num-requests",
        "2",
        "--repeats",
        "1",
        "--spec-bench",
        tmp_path / "a.jsonl",
    )
    assert bench("table", *words)[0] == 0
    rows = [(tmp_path / f"a-{arm}.jsonl").read_text().splitlines() for arm in ("none", "2")]
    turns = [[json.loads(line)["choices"][0]["turns"] for line in lines] for lines in rows]
    assert turns[0] == turns[1] and len(turns[0]) == 2


MISTAKES = [
    (("table", "--concurrency", "40", "--num-requests", "20"), "20 requests cannot be 40 in flight"),
    (("table", "--concurrency", "1,x"), "--concurrency takes counts"),
    (("table", "--concurrency", "1" * 5000), "--concurrency takes counts"),
    (("table", "--full"), "2500 tokens of prompt and 1500 of answer, but the context holds 256"),
    (("table",), "625 tokens of prompt and 375 of answer, but the context holds 256"),
    (("table", "--full", "--short"), "exclude each other"),
    (("table", "--dataset", "random", "--input-len", "9" * 12), "context holds 256"),
    (("table", "--arms", "none,99"), "no arm '99'"),
    (("table", "--arms", ""), "no arm to measure"),
    (("table", "--arms", "mtp:1:2"), "no arm"),
    (("table", "--arms", "none", "-k", "2"), "exclude each other"),
    (("table", "--json", "--markdown"), "exclude each other"),
    (("table", "--short", "--dataset", "absent.json"), "no dataset absent.json"),
    (("table", "--short", "--source", "nope"), "no source 'nope'"),
    (("table", "--by-source", "--source", "wordnet"), "leave --source out"),
    (("table", "--output", "no/such/place.json"), "no/such/place.json cannot be written"),
    (("table", "--baseline-server", "http://x", *SMALL), "belongs to --server"),
    (("table", "--server", "ftp://x", *SMALL), "no address of a server"),
    (("table", "--server", "http://127.0.0.1:9", *SMALL), "stopped answering"),
    (("table", "--server", "http://127.0.0.1:9", "--threads", "1"), "--threads is the server's own"),
    (("table", "--server", "http://x", "--baseline-server", "http://y", *SMALL, "--arms", "none,1,2"), "Two"),
    (("table", "--drafter", "none"), "--drafter none is what the arm none stands for"),
    (("table", "--drafter", "ngram", "--mtp-modules", "1"), "belongs to --drafter mtp"),
    (("rate", "--request-rate", "0"), "--request-rate takes"),
    (("rate", "--request-rate", "nan,1"), "--request-rate takes"),
    (("compare", "--server", "http://x", *SMALL), "NAME=URL"),
    (("plot", "absent.json"), "absent.json cannot be read"),
    (("spec-bench", "absent.jsonl", "--out", "a.jsonl"), "no dataset absent.jsonl"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: " ".join(value)[:60] if len(value) < 9 else "")
def test_a_mistake_is_one_sentence(bench: Run, words: tuple[str, ...], said: str) -> None:
    code, out, err = bench(*words)
    assert code == 2 and out == "" and err.startswith("paceline: ") and err.count("\n") == 1 and said in err


def test_an_option_before_the_subcommand_is_not_lost(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["paceline", "bench", "-k", "3", "table"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", b"one")
    write_whole(tmp_path / "a.json", b"two")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_bytes() == b"two"
    with pytest.raises(UserError, match="cannot be written"):
        write_whole(tmp_path / "no" / "b.json", b"")
    for content in (b"", b"[]", b"{}", b'{"format": 1}', b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.json"):
            read_record(tmp_path / "bad.json")


def test_the_hash_is_of_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    facts = model_facts(tiny_model, None, "bfloat16", None)
    assert facts == model_facts(tiny_model, None, "bfloat16", None) and facts["hashed"] == "weights"
    for file in tiny_model.iterdir():
        content = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            content[-1] ^= 1
        (tmp_path / file.name).write_bytes(content)
    assert model_facts(tmp_path, None, "bfloat16", None)["sha256"] != facts["sha256"]


def test_an_interrupted_run_keeps_what_it_measured(bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second row's second repeat: the first row is whole, the second has one repeat."""
    repeats = count()

    def run(*args: Any) -> dict[str, list[Answer]]:
        if next(repeats) == 3:
            raise KeyboardInterrupt
        return in_turns(*args)

    monkeypatch.setattr(rows, "in_turns", run)
    file = tmp_path / "t.json"
    words = ("--concurrency", "1,2", "--num-requests", "3", "--repeats", "2", "--output", file)
    code, out, _ = bench("table", *SMALL, *words, "--markdown")
    record = read_record(file)
    assert code == 130 and not record["complete"] and [row["repeats"] for row in record["rows"]] == [2, 1]
    assert out.count("\n") == 4


def test_details_are_shown(bench: Run) -> None:
    words = (*SMALL, "--concurrency", "1", "--num-requests", "2", "--repeats", "1")
    code, out, _ = bench("table", *words, "--details")
    assert code == 0 and "p50 / p90" in out and "position" in out and "width" in out


def test_shares_and_intervals_in_words() -> None:
    assert shares([3, 0, 1]) == "0: 75 %, 2: 25 %" and shares([]) == ""
    assert interval({"median": 1.516, "low": 1.49, "high": 1.55}) == "1.52x [1.49, 1.55]"
    assert interval(None) == "-" and interval({"median": 2.0, "low": None, "high": None}) == "2.00x"
