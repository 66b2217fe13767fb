"""An export that is killed leaves the target as it was, or complete; an interrupted one leaves nothing else either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from make_deepseek_checkpoint import TINY, Sizes, make_checkpoint

from paceline.convert.export_mtp import export_mtp, verify_export
from paceline.convert.export_plan import plan_export

SCRIPT = Path(__file__).with_name("export_kills.py")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = Sizes(**{**vars(TINY), "vocab_size": 8192, "n_routed_experts": 32})
    return make_checkpoint(tmp_path_factory.mktemp("deepseek") / "full", sizes, shards=3)


def test_a_killed_export_is_all_or_nothing(tmp_path: Path, source: Path) -> None:
    """SIGKILL at 20 random moments."""
    target = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(source), str(target), "20", "7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == 20 and sum(one["killed"] for one in rounds) >= 5
    assert [one for one in rounds if one["left"] not in (one["before"], "new")] == []
    plan = plan_export(source)
    export_mtp(plan, target, overwrite=True)
    verify_export(plan, target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "what the kills left is cleaned up"


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell started the tests in the background and had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(after: int) -> Callable[[int], None]:
    """^C when the export has reported `after` times."""
    calls = iter(range(after))

    def advance(_: int) -> None:
        if next(calls, None) is None:
            signal.raise_signal(signal.SIGINT)

    return advance


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("after", [0, 1, 20])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, source: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_mtp(plan_export(source), tmp_path / "deep" / "out", advance=interrupt(after))
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.usefixtures("heard")
def test_an_interrupted_replacement_leaves_the_old_one(tmp_path: Path, source: Path) -> None:
    old, target = plan_export(source, "sglang"), tmp_path / "out"
    export_mtp(old, target)
    with pytest.raises(KeyboardInterrupt):
        export_mtp(plan_export(source), target, overwrite=True, advance=interrupt(20))
    verify_export(old, target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
