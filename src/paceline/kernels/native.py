"""Compiles the C files beside it with the machine's own C compiler, once, and calls them. Where there is no compiler,
`library()` is None and plain torch does the same work, slower; nothing else changes, for one process always takes one
way."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_FILES = ("native", "latent", "heads", "linear", "moe", "mla", "layer", "chain", "rounds", "noise", "masks", "int8")
SOURCES = tuple(Path(__file__).with_name(f"{name}.c") for name in _FILES)
_HEADERS = ("bf16", "quick_exp", "team", "tile", "lanes", "native", "chain")
HEADERS = tuple(Path(__file__).with_name(f"{name}.h") for name in _HEADERS)
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fPIC")
MAX_HALF_ROPE, MAX_EXPERTS = 256, 256  # sizes of the arrays in native.c
SHARED_AT_LEAST = 1 << 18  # weights of a product below which waking other threads costs more than they save
MANY = 1 << 16  # numbers that a small step goes through, below which it keeps to one thread
OFF = "PACELINE_NO_NATIVE"  # environment variable: any value keeps to plain torch
_LONG, _POINTER, _FLOAT = ctypes.c_long, ctypes.c_void_p, ctypes.c_float
SIGNATURES = {
    "rms_norm": [_POINTER] * 3 + [_LONG] * 3 + [_FLOAT, ctypes.c_int],
    "norm_pairs": [_POINTER] * 6 + [_LONG] * 2 + [ctypes.c_int, _FLOAT],
    "gumbel": [_POINTER] * 3 + [_LONG] * 2,
    "best_of": [_POINTER] * 3 + [_LONG] * 2 + [ctypes.c_int],
    "choose": [_POINTER] * 6 + [_LONG] * 2 + [ctypes.c_int],
    "only_allowed": [_POINTER] * 3 + [_LONG] * 3 + [_FLOAT],
    "rotate_and_norm": [_POINTER] * 4 + [_LONG] * 4 + [_FLOAT, ctypes.c_int],
    "causal_softmax": [_POINTER] + [_LONG] * 5,
    "route": [_POINTER] * 4 + [_LONG] * 4 + [ctypes.c_int, _FLOAT, ctypes.c_int],
    "gated": [_POINTER] * 3 + [_LONG] * 4 + [ctypes.c_int],
    "attend_latent": [_POINTER] * 9 + [_LONG] * 7 + [_FLOAT, _LONG, ctypes.c_int],
    "attend_heads": [_POINTER] * 7 + [_LONG] * 12 + [_FLOAT, _LONG, ctypes.c_int],
    "packed_linear": [_POINTER] * 4 + [_LONG] * 3 + [ctypes.c_int] * 2,
    "gated_experts": [_POINTER] * 8 + [_LONG] * 5 + [ctypes.c_int] * 2,
    "mla": [_POINTER] * 9,
    "decoder_layer": [_POINTER] * 8,
    "decoder_stack": [_POINTER] * 7 + [_LONG],
    "mtp_module": [_POINTER] * 8,
    "draft_chain": [_POINTER] * 11 + [_LONG] * 2 + [ctypes.c_int],
    "run_rounds": [_POINTER] * 2,
    "int8_linear": [_POINTER] * 5 + [_LONG] * 3 + [ctypes.c_int],
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they cannot be had. The file is kept in the user's cache directory, under a
    name made of the source, the flags, the compiler and the processor."""
    return None if OFF in os.environ else made_for(amd=b"AuthenticAMD" in _processor())


@cache
def made_for(amd: bool) -> ctypes.CDLL | None:
    """The functions as they serve AMD's processors best, or others: both run on both."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or platform.system() != "Linux":
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled(compiler, amd)))
    except (OSError, subprocess.SubprocessError):
        return None
    for name, arguments in SIGNATURES.items():
        function = getattr(loaded, name, None)
        if function is None:  # the products are for some processors only
            continue
        function.argtypes, function.restype = arguments, None
    return loaded


def _compiled(compiler: str, amd: bool) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=20).stdout
    text = b"".join(file.read_bytes() for file in (*SOURCES, *HEADERS))
    flags = [*FLAGS, *_openmp(version), f"-DMADE_BY_AMD={int(amd)}"]
    about = b"\0".join((text, " ".join(flags).encode(), version, _processor()))
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache_home / "paceline" / f"native-{hashlib.sha256(about).hexdigest()[:32]}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        made = Path(work) / "native.so"
        objects = [f"{source.stem}.o" for source in SOURCES]
        for command in ([*flags, "-c", *map(str, SOURCES)], ["-shared", "-o", str(made), *objects, "-lm"]):
            subprocess.run([compiler, *command], cwd=work, capture_output=True, check=True, timeout=120)
        made.replace(target)  # two processes may compile at once; each puts a whole file there
    return target


def _openmp(version: bytes) -> list[str]:
    """Flags for threads. They are those of torch's own OpenMP library, found in this process: it is not linked, for the
    idle threads of a second one would keep the cores busy. Where torch has another one, all run on one thread."""
    theirs = hasattr(ctypes.CDLL(None), "GOMP_parallel")
    return ["-fopenmp"] if theirs and b"Free Software Foundation" in version else []


def _processor() -> bytes:
    """What -march=native depends on: a home directory may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        lines = []
    about = (b"flags", b"Features", b"model name", b"vendor_id")
    return b"\n".join(sorted({line for line in lines if line.startswith(about)}))


def serves(*tensors: Tensor) -> bool:
    """Whether these tensors are for the compiled functions: bf16 on the CPU, nothing to differentiate."""
    if library() is None or torch.is_grad_enabled():
        return False
    return all(x.dtype == torch.bfloat16 and x.is_cpu for x in tensors)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`; x [rows, n] dense in its last dimension."""
    rows, n = x.shape
    out = torch.empty(rows, n, dtype=x.dtype)
    call("rms_norm", x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, n, x.stride(0), eps, _threads(x.numel()))
    return out


def norm_pairs(
    tokens: Tensor, table: Tensor, states: Tensor, weights: tuple[Tensor, Tensor], eps: float, states_first: bool
) -> Tensor:
    """As `reference.norm_pairs`; states [T, n] contiguous."""
    rows, n = states.shape
    made = torch.empty(rows, 2 * n, dtype=states.dtype)
    pointers = (tokens.data_ptr(), table.data_ptr(), states.data_ptr(), *(w.data_ptr() for w in weights))
    call("norm_pairs", *pointers, made.data_ptr(), rows, n, states_first, eps)
    return made


def best_of(scores: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.best_of`; scores contiguous."""
    rows, n = scores.shape
    best, rated = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float32)
    call("best_of", scores.data_ptr(), best.data_ptr(), rated.data_ptr(), rows, n, _threads(2 * scores.numel()))
    return best, rated


def best_token(scores: Tensor) -> Tensor:
    """As `reference.best_token`; scores contiguous."""
    rows, n = scores.shape
    best = torch.empty(rows, dtype=torch.int64)
    call("best_of", scores.data_ptr(), best.data_ptr(), None, rows, n, _threads(2 * scores.numel()))
    return best


def choose(
    logits: Tensor, places: array[int], heats: Sequence[float], hashes: Tensor, rate: bool
) -> tuple[Tensor, Tensor]:
    """The token of each row of logits [R, V], contiguous: the best where its heat is 0, else the first of those with
    the most logit / heat + noise of its place, in float32. And, if asked for, its log-probability at that heat, or 1.

    places: R times a seed and a position, unsigned; hashes: of the token ids, [V]."""
    (rows, n), degrees = logits.shape, array("f", heats)
    chosen, rated = torch.empty(rows, dtype=torch.int64), torch.empty(rows if rate else 0)
    call(
        "choose", logits.data_ptr(), places.buffer_info()[0], degrees.buffer_info()[0], hashes.data_ptr(),
        chosen.data_ptr(), rated.data_ptr() if rate else None, rows, n, _threads(logits.numel()),
    )  # fmt: skip
    return chosen, rated


def only_allowed(logits: Tensor, masks: Sequence[bytes], least: float) -> Tensor:
    """Of logits [R, V], contiguous, those that the masks allow, raised to `least`; -inf for the rest. masks: R, of one
    length, a bit for each token, the lowest of the first byte first."""
    made = torch.empty_like(logits)
    call("only_allowed", logits.data_ptr(), b"".join(masks), made.data_ptr(), *logits.shape, len(masks[0]), least)
    return made


def gumbel(keys: Tensor, hashes: Tensor) -> Tensor:
    """As `reference.gumbel`, all contiguous."""
    made = torch.empty(len(keys), len(hashes), dtype=torch.float32)
    call("gumbel", keys.data_ptr(), hashes.data_ptr(), made.data_ptr(), *made.shape)
    return made


def rotate_and_norm(made: Tensor, cos: Tensor, sin: Tensor, weight: Tensor, eps: float) -> None:
    """As `reference.rotate_and_norm`."""
    rows, heads, width = made.shape
    rank = len(weight)
    pointers = (made.data_ptr(), cos.data_ptr(), sin.data_ptr(), weight.data_ptr())
    call("rotate_and_norm", *pointers, rows, heads, rank, width - rank, eps, _threads(made.numel() // 4))


def causal_softmax(scores: Tensor, context: int, first: int) -> None:
    """As `reference.causal_softmax`; scores [rows, heads, width] contiguous."""
    call("causal_softmax", scores.data_ptr(), *scores.shape, context, first)


def route(x: Tensor, weight: Tensor, bias: Tensor, top: int, normalise: bool, scaling: float) -> Tensor:
    """As `reference.route`."""
    shares = torch.empty(len(x), len(weight), dtype=torch.float32)
    pointers = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), shares.data_ptr())
    call("route", *pointers, len(x), *weight.shape, top, normalise, scaling, _threads(len(x) * weight.numel()))
    return shares


def gated(gate_up: Tensor, shares: Tensor | None, width: int) -> Tensor:
    """As `reference.gated`; gate_up contiguous."""
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, n, dtype=gate_up.dtype)
    owners, experts = (None, 0) if shares is None else (shares.data_ptr(), shares.shape[1])
    call("gated", gate_up.data_ptr(), owners, out.data_ptr(), rows, n, experts, width, _threads(gate_up.numel()))
    return out


def _threads(numbers: int) -> int:
    return torch.get_num_threads() if numbers >= MANY else 1


def multiplies_int8(x: Tensor) -> bool:
    """Whether `int8_linear` is for these rows: the processor multiplies bf16 itself."""
    return serves(x) and hasattr(library(), "int8_linear")


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """As `reference.quantised_linear` of int8, all contiguous. The outputs of a large weight are shared out among as
    many threads as torch has."""
    (rows, inputs), outputs = x.shape, len(weight)
    out = torch.empty(rows, outputs, dtype=x.dtype)
    added = None if bias is None else bias.data_ptr()
    pointers = (x.data_ptr(), weight.data_ptr(), scale.data_ptr(), added, out.data_ptr())
    threads = torch.get_num_threads() if weight.numel() >= SHARED_AT_LEAST else 1
    call("int8_linear", *pointers, rows, inputs, outputs, threads)
    return out


def call(name: str, *arguments: object) -> None:
    """One of the functions of `library`, which is not None."""
    found = library()
    assert found is not None
    getattr(found, name)(*arguments)
