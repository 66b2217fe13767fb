"""What Python says of the compiled functions is what the C files say: nothing else would tell, but for a crash."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from paceline.kernels import native

TYPES = {"long": ctypes.c_long, "int": ctypes.c_int, "float": ctypes.c_float}
PROTOTYPE = re.compile(r"^void (\w+)\(([^)]*)\)", re.MULTILINE)


def prototypes(file: Path) -> list[tuple[str, list[type]]]:
    """Every function of a C file that other files see, and the types of its arguments."""
    found = PROTOTYPE.findall(file.read_text())
    return [(name, [type_of(argument) for argument in arguments.split(",")]) for name, arguments in found]


def type_of(argument: str) -> type:
    return ctypes.c_void_p if "*" in argument else TYPES[argument.split()[-2]]


def test_a_prototype_is_read_as_it_is_written() -> None:
    assert type_of(" const bf16 *x") is type_of("bf16 *const *x") is ctypes.c_void_p
    found = [type_of(argument) for argument in ("long rows", "\n int n", "const float eps")]
    assert found == [ctypes.c_long, ctypes.c_int, ctypes.c_float]


@pytest.mark.parametrize("file", [*native.SOURCES, *native.HEADERS], ids=lambda file: file.name)
def test_signatures_and_prototypes_agree(file: Path) -> None:
    for name, types in prototypes(file):
        assert native.SIGNATURES[name] == types, name


def test_every_signature_has_its_function() -> None:
    found = {name for file in native.SOURCES for name, _ in prototypes(file)}
    assert found == native.SIGNATURES.keys()
