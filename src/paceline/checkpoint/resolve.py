"""What the user calls a model, to a directory on this machine."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from paceline.errors import UserError

BUNDLED = "paceline-16m"  # the directory below `paceline/assets` with the model that comes with the package
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")


def bundled_model() -> Path:
    """The model inside the package. Raises UserError when this build of the package comes without it."""
    directory = Path(str(resources.files("paceline"))) / "assets" / BUNDLED
    if not (directory / "config.json").is_file():
        raise UserError("This copy of Paceline comes without its bundled model: name another with --model.")
    return directory


def resolve_model(name: str | Path | None = None) -> Path:
    """None or the bundled model's name, a directory, or a Hugging Face id (`owner/name`, downloaded once and cached).

    Raises UserError when it is none of these, or cannot be downloaded."""
    if name is None or name == BUNDLED:
        return bundled_model()
    directory = Path(name).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise UserError(f"{directory} has no config.json: give the directory that holds the model's files.")
        return directory
    if directory.exists():
        raise UserError(f"{directory} is a file: give the directory that holds the model's files.")
    if not HUB_ID.fullmatch(str(name)):
        raise UserError(f"There is no model directory {name}: give a directory, or a Hugging Face id as in owner/name.")
    return _download(str(name))


def _download(repository: str) -> Path:
    # Imported here: whoever serves a local directory needs no client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(HUB_FILES)))
    except GatedRepoError:
        raise UserError(f"{repository} is gated: accept its licence there and log in with `hf auth login`.") from None
    except RepositoryNotFoundError:
        raise UserError(f"There is no directory and no Hugging Face model {repository}: check the name.") from None
    except Exception as problem:  # whatever the network client raises, and it changes its client between versions
        raise UserError(
            f"{repository} is no directory here and cannot be downloaded ({type(problem).__name__}): "
            "give a local directory, or check the name and the network."
        ) from None
