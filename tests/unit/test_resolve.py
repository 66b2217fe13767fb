"""What the user calls a model, to a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from paceline.checkpoint import resolve
from paceline.checkpoint.resolve import resolve_model
from paceline.errors import UserError


def test_a_directory_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(tmp_path) == resolve_model(str(tmp_path)) == tmp_path


def test_none_and_its_name_are_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = tmp_path / "assets" / resolve.BUNDLED
    bundled.mkdir(parents=True)
    monkeypatch.setattr(resolve.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="without its bundled model"):
        resolve_model(None)
    (bundled / "config.json").write_text("{}")
    assert resolve_model(None) == resolve_model(resolve.BUNDLED) == bundled


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "no model directory nowhere"),
        ("a/b/c", "no model directory a/b/c"),
        ("../x/y", "no model directory"),
        ("", "no model directory|no config.json"),
    ],
)
def test_names_that_are_nothing(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        resolve_model(name)


def test_directories_and_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        resolve_model(tmp_path / "file")


def test_an_id_is_downloaded_without_code_or_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name-7B") == tmp_path
    assert asked["repository"] == "owner/name-7B"
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["allow_patterns"])


def test_no_network_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("offline\nand many\nlines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match=r"cannot be downloaded.*local directory") as error:
        resolve_model("owner/name")
    assert "\n" not in str(error.value)
