"""What a benchmark's JSON file holds beside its rows, and how it gets to disk: whole, again after every repeat."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import paceline
from paceline.bench.verdicts import by_source
from paceline.errors import UserError
from paceline.machine import processor_name

FORMAT = 1
HASHED_WHOLE = 4 << 30  # bytes of weights beyond which only their headers are hashed
HEADER = 1 << 20
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass
class Record:
    """kind: the subcommand. settings: its options as they were understood. rows: what was measured so far.

    file: where it goes after every change, if anywhere."""

    kind: str
    command: str
    settings: dict[str, Any]
    model: dict[str, Any]
    file: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.machine = machine()
        self.save()

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "command": self.command,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began, 1),
            "complete": self.complete,
            "machine": self.machine,
            "model": self.model,
            "settings": self.settings,
            "by_source": _rounded(by_source(self.rows)),
            "rows": self.rows,
        }

    def put(self, index: int, row: dict[str, Any]) -> None:
        """Row `index` as it is by now; numbers to six digits, which is more than anybody can measure."""
        self.rows[index:] = [_rounded(row)]
        self.save()

    def save(self) -> None:
        """Raises `UserError` when the file cannot be written."""
        if self.file is not None:
            write_whole(self.file, self.as_text().encode())

    def as_text(self) -> str:
        """JSON with one line a row."""
        head = json.dumps(self.as_dict() | {"rows": []}, indent=1).removesuffix("[]\n}")
        return head + "[\n" + ",\n".join(map(json.dumps, self.rows)) + "\n]}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_whole(path: Path, content: bytes) -> None:
    """The file has its old content or the new one, never a part. Raises `UserError` when it cannot be written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another place.") from error


def read_record(path: Path) -> dict[str, Any]:
    """What `Record` wrote; raises `UserError` for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a benchmark's JSON ({error}); give what --output wrote.") from error
    told = found if isinstance(found, dict) else {}
    if told.get("format") != FORMAT or not isinstance(told.get("rows"), list) or not isinstance(told.get("kind"), str):
        raise UserError(f"{path} is not the JSON of a benchmark; give what `paceline bench table --output` wrote.")
    return told


def machine() -> dict[str, Any]:
    """Processor, threads, versions and commit: what a figure depends on beside the model."""
    packages = {name: _version(name) for name in LIBRARIES}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version(), "paceline": paceline.__version__, **packages},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that the package runs from, with "+" when it was changed since; None for an installed one."""
    here = Path(paceline.__file__).parent
    git = ("git", "-C", str(here), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def model_facts(path: Path, name: str | None, dtype: str, quantization: str | None) -> dict[str, Any]:
    """Name and hash of a checkpoint: SHA-256 over config.json and the weights in order of their names; of very large
    ones over sizes and headers only."""
    files = sorted(path.glob("*.safetensors"))
    whole = sum(file.stat().st_size for file in files) <= HASHED_WHOLE
    digest = sha256((path / "config.json").read_bytes())
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while piece := stream.read(HEADER):
                digest.update(piece)
                if not whole:
                    break
    return {
        "name": Path(name).name if name else path.name,
        "sha256": digest.hexdigest(),
        "hashed": "weights" if whole else "headers of weights",
        "dtype": dtype,
        "quantization": quantization,
    }
