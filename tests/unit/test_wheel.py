"""What `pip install` brings: every file of the package, the page, the bundled model and the C sources among them."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
NEEDED = (
    "assets/heldout.jsonl",
    "assets/paceline-16m/model.safetensors",
    "assets/paceline-16m/tokenizer.json",
    "kernels/native.c",
    "kernels/lanes.h",
    "py.typed",
    "serve/playground/index.html",
    "serve/playground/style.css",
)


def test_the_wheel_holds_every_file_of_the_package() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="it needs pip install -e '.[dev]'")
    held = {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    files = (path for path in (SOURCE / "paceline").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert held == {path.relative_to(SOURCE).as_posix() for path in files}
    assert {f"paceline/{name}" for name in NEEDED} <= held


def test_what_is_read_at_run_time_lies_in_the_package() -> None:
    """A file beside the package, like a document, is not there after `pip install`."""
    texts = {path: path.read_text(encoding="utf-8") for path in (SOURCE / "paceline").rglob("*.py")}
    assert not [path for path, text in texts.items() if "(__file__).parents" in text]
    assert sum("(__file__)" in text for text in texts.values()) > 2
