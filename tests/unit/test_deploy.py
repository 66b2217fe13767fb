"""What is deployed beside the server: the dashboard asks for numbers that there are, the service for flags that there
are."""

from __future__ import annotations

import json
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

from metric_pages import busy_page
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from paceline.cli.main import make_app
from paceline.serve.app import router
from paceline.serve.settings import ServerSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


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
    program, *words = unit["Service"]["ExecStart"].split()
    assert program.endswith("/paceline") and words[0] == "serve" and unit["Service"]["KillMode"] == "mixed"
    assert {word for word in words if word.startswith("--")} <= flags()


def flags() -> set[str]:
    """Of `paceline serve`."""
    return {flag for each in get_command(make_app()).commands["serve"].params for flag in each.opts}  # type: ignore[attr-defined]


def instructions() -> dict[str, list[str]]:
    """Of the container file: each with what follows it, every time it is there."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word.isupper():
            found.setdefault(word, []).append(rest.strip())
    return found


def test_the_image_is_built_of_what_there_is() -> None:
    copied = [source for line in instructions()["COPY"] for source in line.split()[:-1]]
    assert not [source for source in copied if not (ROOT / source).exists()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    built_from = {"pyproject.toml", "src", project["readme"], *project["license-files"]}
    assert built_from <= set(copied)
    (extras,) = re.findall(r"\.\[(\w+)\]", " ".join(instructions()["RUN"]))
    assert extras in project["optional-dependencies"]
    _, low, high = re.split(r">=|,<", project["requires-python"])
    (version,) = re.findall(r"python:(\d\.\d+)", instructions()["FROM"][0])
    assert tuple(map(int, low.split("."))) <= tuple(map(int, version.split("."))) < tuple(map(int, high.split(".")))


def test_the_image_starts_a_server_that_others_reach() -> None:
    found = instructions()
    (entry,) = (json.loads(line) for line in found["ENTRYPOINT"])
    assert entry[:2] == ["paceline", "serve"] and "0.0.0.0" in entry
    assert {word for word in entry if word.startswith("--")} <= flags()
    assert found["EXPOSE"] == [str(ServerSettings.port)] and found["STOPSIGNAL"] == ["SIGTERM"]
    (path,) = re.findall(rf"127\.0\.0\.1:{ServerSettings.port}(/\w+)", found["HEALTHCHECK"][0])
    assert path in {route.path for route in router.routes}  # type: ignore[attr-defined]
    assert found["USER"] == ["paceline"] and "useradd --create-home paceline" in found["RUN"]


def test_the_documents_build_that_image() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    named = re.findall(r"deploy/[\w./-]*\w", page)
    assert "deploy/Containerfile" in named and not [name for name in named if not (ROOT / name).exists()]
