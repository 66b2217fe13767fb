"""A directory of safetensors files, known from its headers alone; a tensor is read when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paceline.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; the bound of the format itself
AGAIN = "download or export it again."

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_SIZES = {word: dtype.itemsize for word, dtype in DTYPES.items()}  # bytes


class TensorInfo(NamedTuple):
    """What a header tells about one tensor; `dtype` is the format's own word (BF16, F8_E4M3...).

    Its data are the `size` bytes of `file` from `start` on. A tuple, for there are ninety thousand in a large model."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class Checkpoint(Mapping[str, TensorInfo]):
    """Name -> TensorInfo of `model.safetensors`, of the shards that `model.safetensors.index.json` names, or of the one
    *.safetensors file that is there under another name.

    wanted: of an index, only the tensors it accepts are known, and only their shards are opened. infos: the mapping as
    it is, for who walks through all of it. told: what the index says beside that, where there is one and it is read.

    Everything that can be wrong with the files is found here, before a tensor is read. Raises UserError for a missing
    directory or file, a truncated or malformed file, and an index or a link that points outside the directory."""

    def __init__(self, directory: str | Path, wanted: Callable[[str], bool] = lambda _: True) -> None:
        self.directory = Path(directory)
        self.infos, self.told = _scan(self.directory, wanted)
        self._open: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> TensorInfo:
        return self.infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def tensor(self, name: str) -> Tensor:
        """The tensor as it is stored, on the CPU, mapped from the file. Raises UserError for an unknown name."""
        if name not in self:
            raise UserError(f"Tensor {name} is not in {self.directory}: use the whole checkpoint, of this model.")
        file = self[name].file
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, framework="pt")
            tensor: Tensor = self._open[file].get_tensor(name)
        except (SafetensorError, OSError) as problem:
            raise UserError(f"Tensor {name} cannot be read from {file} ({problem}): {AGAIN}") from None
        return tensor

    def release(self) -> None:
        """Lets go of the files that are mapped, once nothing of them is in use; what comes next opens them again."""
        self._open.clear()


class Index(NamedTuple):
    """weight_map: tensor name to file name. metadata: whatever else it tells, by nobody checked."""

    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]


def _scan(directory: Path, wanted: Callable[[str], bool]) -> tuple[Mapping[str, TensorInfo], Mapping[str, Any] | None]:
    """The tensors of the directory, and what its index tells beside them. The index decides which tensors count; each
    must be in the shard it names."""
    if not directory.is_dir():
        raise UserError(f"There is no model directory {directory}: name one with *.safetensors.")
    single = directory / SINGLE
    if single.is_file() or not (directory / INDEX).is_file():
        found = read_header(single if single.is_file() else _only_file(directory))
        return {name: info for name, info in found.items() if wanted(name)}, None
    index = _read_index(directory)
    shard_of = {name: shard for name, shard in index.weight_map.items() if wanted(name)}
    shards = {shard: read_header(directory / shard) for shard in sorted(set(shard_of.values()))}
    for name, shard in shard_of.items():
        if name not in shards[shard]:
            raise UserError(f"{directory / shard} lacks tensor {name} that {INDEX} promises: {AGAIN}")
    return {name: shards[shard][name] for name, shard in shard_of.items()}, index.metadata


def _only_file(directory: Path) -> Path:
    files = list(islice(directory.glob("*.safetensors"), 2))
    if len(files) != 1:
        raise UserError(f"{directory} holds neither {SINGLE} nor {INDEX}: convert the weights to safetensors first.")
    return files[0]


def check_inside(file: Path) -> None:
    """Raises UserError for a link that leads out of the file's directory, unless into the blobs that a download cache
    of the Hugging Face hub keeps beside its snapshots."""
    home, target = file.parent.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs"
    if target.parent != home and not (home.parent.name == "snapshots" and target.parent == blobs):
        raise UserError(f"{file} is a link that leads out of its directory: put the file itself there.")


def _read_index(directory: Path) -> Index:
    """Every file name in it is a plain one of an existing file."""
    path = directory / INDEX
    check_inside(path)
    if path.stat().st_size > MAX_HEADER:
        raise UserError(f"{path} is larger than {MAX_HEADER} bytes, which no model's index is: do not use it.")
    try:
        content = json.loads(path.read_bytes())
        index, metadata = content["weight_map"], content.get("metadata")
        shards = set(index.values())
        if not all(isinstance(shard, str) for shard in shards):
            raise TypeError("file names that are no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not an index with a weight_map: {AGAIN}") from None
    for shard in shards:
        _check_shard(directory, shard, index)
    return Index(index, metadata if isinstance(metadata, dict) else {})


def _check_shard(directory: Path, shard: str, index: Mapping[str, str]) -> None:
    """Raises UserError that names a tensor for a file that is elsewhere, nowhere, or of another kind."""
    path = directory / INDEX
    if shard != Path(shard).name or "\\" in shard or not shard.endswith(".safetensors"):
        name = _first_in(shard, index)
        raise UserError(f"{path} names {shard!r} for tensor {name}, no *.safetensors file beside it: do not use it.")
    if not (directory / shard).is_file():
        raise UserError(
            f"{directory / shard} is missing though {INDEX} names it for tensor {_first_in(shard, index)}: {AGAIN}"
        )


def _first_in(shard: str, index: Mapping[str, str]) -> str:
    return next(name for name, other in index.items() if other == shard)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, from its header alone: 8 bytes of length, then JSON, then the data to the end.

    Raises UserError for a link out of the directory, a file that is too short, or a header that is too long, not JSON,
    or at odds with the size."""
    check_inside(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version " and size < 1000:
            raise UserError(f"{file} is only a pointer of Git LFS: fetch the weights with `git lfs pull`.")
        if size < 8 or length > size - 8:
            raise UserError(f"{file} is truncated ({size} bytes do not hold its header): {AGAIN}")
        if length > MAX_HEADER:
            raise UserError(f"{file} has a header of {length} bytes, more than the format allows: do not use it.")
        raw = stream.read(length)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        tensors = {str(name): _info(file, entry, 8 + length) for name, entry in entries.items()}
        end = max((info.start + info.size for info in tensors.values()), default=8 + length) - 8 - length
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise UserError(f"{file} has an unreadable header: {AGAIN}") from None
    if end != size - 8 - length:
        cut = next((f", tensor {name} is cut" for name, info in tensors.items() if info.start + info.size > size), "")
        raise UserError(
            f"{file} is truncated or damaged (its header promises {end} bytes of data, {size - 8 - length} are there"
            f"{cut}): {AGAIN}"
        )
    return tensors


def _info(file: Path, entry: Mapping[str, Any], data: int) -> TensorInfo:
    """One entry, whose offsets count from byte `data`. Raises ValueError where they do not fit dtype and shape."""
    dtype, shape = str(entry["dtype"]), tuple(map(int, entry["shape"]))
    start, end = map(int, entry["data_offsets"])
    if start < 0 or end < start or _bytes(dtype, shape) not in (None, end - start):
        raise ValueError("sizes that do not fit the shape")
    return TensorInfo(file, dtype, shape, data + start, end - start)


@lru_cache(4096)  # a model has few shapes
def _bytes(dtype: str, shape: tuple[int, ...]) -> int | None:
    """None for a dtype that is not known. Raises ValueError for a negative size."""
    if shape and min(shape) < 0:
        raise ValueError("negative sizes")
    size = _SIZES.get(dtype)
    return None if size is None else prod(shape) * size
