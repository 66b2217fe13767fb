"""Every family with MTP modules: what is exported of them is, loaded beside the target, what it is in place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_mtp import MTP_CASES
from tiny_models import make_mtp_reference

from paceline.checkpoint.layouts import LAYOUTS
from paceline.convert.export_mtp import export_mtp
from paceline.convert.export_plan import plan_export
from paceline.errors import UserError
from paceline.runtime.build import load_mtp, load_target


@pytest.mark.parametrize("case", [case for case in MTP_CASES if " " not in case or "tied" in case])
def test_every_familys_modules_travel(case: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_mtp_reference(case, source, 2)
    target = load_target(source)
    expected = load_mtp(source, target).weights()
    exported = 0
    for layout in LAYOUTS:
        try:
            plan = plan_export(source, layout, dtype="keep")
        except UserError as refused:  # a layout that does not know the family
            assert layout != "original", refused
            continue
        found = load_mtp(export_mtp(plan, tmp_path / layout), target).weights()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        exported += 1
    assert exported == (len(LAYOUTS) if case in ("deepseek_v3", "glm4_moe") else 1)
