"""The curves of a run: what is read from metrics.jsonl, and the picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from train_tools import command

from paceline.errors import UserError
from paceline.train.curves import read_curves


def step(number: int, loss: float) -> dict[str, object]:
    return {"kind": "step", "step": number, "tokens": 100 * number, "loss": [loss, loss + 1]}


def evaluation(number: int, acceptance: float) -> dict[str, object]:
    return {"kind": "eval", "step": number, "total": {"acceptance": [acceptance]}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Lines every two steps; step 4 was done twice, since a crash came before its checkpoint."""
    lines = [step(2, 9.0), evaluation(3, 0.1), step(4, 8.0), step(4, 7.0), step(6, 6.0), evaluation(6, 0.2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_curves_follow_the_tokens(run: Path) -> None:
    curves = read_curves(run / "metrics.jsonl")
    assert curves.loss.tokens == [200, 400, 600] and curves.loss.values == [[9, 10], [7, 8], [6, 7]]
    assert curves.acceptance.tokens == [300, 600] and curves.acceptance.values == [[0.1], [0.2]]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_is_drawn(run: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "new" / f"curves{suffix}"
    assert command("plot-training", str(run), "--out", str(picture)) == 0
    assert {".svg": b"<svg", ".png": b"PNG"}[suffix] in picture.read_bytes()


@pytest.mark.parametrize("text", [None, "", "{", "3\n", '{"step": 1}\n'])
def test_figures_that_cannot_be_read_are_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=str(path)):
        read_curves(path)


def test_without_matplotlib_there_is_one_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name, said in (("curves.gif", ".svg, .png"), ("curves.svg", "install")):
        assert command("plot-training", str(run), "--out", str(run / name)) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not (run / name).exists()
