"""The playground's page and files over HTTP, without a browser and without an engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from paceline.serve.app import make_app
from paceline.serve.page import FOLDER, files
from paceline.serve.settings import ServerSettings
from paceline.serve.state import State


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    """A key is asked for; the page and its files are open all the same."""
    state = SimpleNamespace(settings=ServerSettings(api_keys=("secret",), log_requests=False))
    with TestClient(make_app(cast(State, state))) as client:
        yield client


def paths() -> list[str]:
    return ["/", *(f"/playground/{name}" for name in files())]


@pytest.mark.parametrize("path", paths())
def test_every_file_comes_with_its_type_and_is_asked_for_once(http: TestClient, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 200 and response.content
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    ending = path.rpartition(".")[2] if path != "/" else "html"
    assert response.headers["content-type"].split(";")[0] == kind[ending]
    assert response.headers["x-content-type-options"] == "nosniff"
    again = http.get(path, headers={"If-None-Match": f'"other", W/{response.headers["etag"]}'})
    assert again.status_code == 304 and not again.content and again.headers["etag"] == response.headers["etag"]
    assert http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    head = http.head(path)
    assert head.status_code == 200 and not head.content


def test_the_policy_lets_nothing_in(http: TestClient) -> None:
    policy = dict(part.split(" ", 1) for part in http.get("/").headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert set(policy.values()) == {"'none'", "'self'"}


def test_the_page_names_only_files_that_are_there() -> None:
    page = files()["index.html"].content.decode()
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert len(named) > 4 and {name.removeprefix("playground/") for name in named} <= files().keys()
    for name, file in files().items():
        if name.endswith(".js"):
            imported = re.findall(r'from "\./([^"]+)"', file.content.decode())
            assert set(imported) <= files().keys(), name


def test_nothing_is_loaded_from_elsewhere_and_no_text_becomes_markup() -> None:
    for name, file in files().items():
        text = file.content.decode()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        assert not re.search(r"\son\w+=|<style|style=", text) or not name.endswith(".html"), name


@pytest.mark.parametrize("name", ["nothing.js", "%2e%2e%2fapp.py", "..%2f..%2fapp.py", "a/b", ""])
def test_no_other_file_can_be_had(http: TestClient, name: str) -> None:
    assert http.get(f"/playground/{name}").status_code in (401, 404)


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/playground"])
def test_the_key_still_guards_the_rest(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 401


def test_files_have_one_subject_each() -> None:
    for path in FOLDER.iterdir():
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 400 and (path.suffix != ".js" or lines <= 250), path.name


def test_the_api_document_does_not_mention_it(http: TestClient) -> None:
    document: dict[str, Any] = http.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    assert document["paths"] and not [path for path in document["paths"] if path == "/" or "playground" in path]
