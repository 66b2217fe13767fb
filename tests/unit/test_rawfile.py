"""Writing a file piece by piece: the bytes of plain writes, and the disk is given its work on the way."""

from __future__ import annotations

import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.convert import rawfile


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40)), st.integers(1, 60))
def test_a_file_goes_to_its_disk_in_stretches(pieces: list[bytes], stretch: int) -> None:
    """Each time at least a stretch is waiting, and at the end less than one."""
    begun = [0]
    with tempfile.TemporaryDirectory() as parent, pytest.MonkeyPatch.context() as patch:
        path = Path(parent) / "x"
        patch.setattr(rawfile, "STRETCH", stretch)
        patch.setattr(rawfile, "begin_writing", lambda descriptor: begun.append(os.fstat(descriptor).st_size))
        with path.open("xb", buffering=0) as file:
            out = rawfile.Writing(file)
            for piece in pieces:
                out.write(memoryview(piece))
        assert path.read_bytes() == b"".join(pieces)
    assert all(stretch <= after - before < stretch + 40 for before, after in pairwise(begun))
    assert sum(map(len, pieces)) - begun[-1] < stretch


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the call is Linux's")
def test_the_system_takes_the_call(tmp_path: Path) -> None:
    with (tmp_path / "x").open("xb", buffering=0) as file:
        file.write(bytes(10))
        assert rawfile.begin_writing(file.fileno())
        assert file.tell() == 10
    assert not rawfile.begin_writing(-1)
