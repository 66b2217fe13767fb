"""What is deployed beside the server: the dashboard asks for numbers that there are, the service for flags that there
are."""

from __future__ import annotations

import json
import re
from configparser import ConfigParser
from pathlib import Path

from metric_pages import busy_page
from prometheus_client.parser import text_string_to_metric_families

DEPLOY = Path(__file__).parents[2] / "deploy"
DEPLOY = Path(__file__).parents[2] / "deploy"


def exported() -> dict[str, set[str]]:
    """Each sample's name with the labels that it has."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(busy_page()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_dashboard_names_what_is_exported() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "paceline.json").read_text(encoding="utf-8"))
    known, asked = exported(), [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expression in asked for name in re.findall(r"paceline:\w+", expression)}
    assert len(asked) > 15 and not named - known.keys()
    for expression in asked:
        labels = {label.strip() for group in re.findall(r"by \((.+?)\)", expression) for label in group.split(",")}
        assert all(labels <= known[name] for name in re.findall(r"paceline:\w+", expression)), expression
    not_shown = {name for name in known if not name.endswith(("_created", "_sum", "_count"))} - named
    assert not not_shown, "a number that the dashboard does not show"


def test_widths_are_counted() -> None:
    assert 'paceline:spec_decode_num_drafts_per_width_total{drafter="mtp",model_name="m",width="3"} 1.0' in busy_page()


def test_the_service_starts_the_server() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.read(DEPLOY / "paceline.service")
    assert unit["Service"]["ExecStart"].split()[1:] == ["serve"] and unit["Service"]["KillMode"] == "mixed"
    container = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    assert '"paceline", "serve"' in container and "USER paceline" in container
