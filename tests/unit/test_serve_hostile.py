"""Bodies that no client should send, to every documented route: one clear sentence, and the engine goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from servers import PATIENCE, Served, serving

JSON = {"Content-Type": "application/json"}
COMPLETIONS = "/v1/completions"
SHORT: dict[str, Any] = {"prompt": "one two", "max_tokens": 2}
# What makes a request of each route's; the fields under test are added.
WHOLE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "one"}], "max_tokens": 2},
    COMPLETIONS: SHORT,
    "/tokenize": {"prompt": "one two"},
    "/detokenize": {"tokens": [5, 6]},
}
LIMIT = 2 << 20  # bytes of a body


def nested(depth: int, inner: str = "1") -> str:
    return "[" * depth + inner + "]" * depth


# Values as they stand in the body: not all of them are JSON that Python would write.
VALUES = {
    "true": "true",
    "text": '"text"',
    "empty text": '""',
    "NaN": "NaN",
    "minus infinity": "-Infinity",
    "1e999": "1e999",
    "fraction": "0.5",
    "negative": "-1",
    "a thousand digits": "9" * 1000,
    "ten thousand digits": "9" * 10_000,
    "list": "[]",
    "list of everything": '[null, 1, "a", [], {}, 1.5, true]',
    "object": "{}",
    "object of everything": '{"a": 1, "b": [null], "": {}, "type": "function", "json": {}}',
    "huge list": "[" + "7," * 100_000 + "7]",
    "huge list of texts": "[" + '"a",' * 60_000 + '"a"]',
    "huge object": "{" + ",".join(f'"{i}": 1' for i in range(20_000)) + "}",
    "deep lists": nested(300),
    "deeper lists": nested(200_000),
    "deep objects": '{"a":' * 300 + "1" + "}" * 300,
    "long text": '"' + "word " * 60_000 + '"',
    "long word": '"' + "w" * 300_000 + '"',
    "lone surrogate": '"\\ud800"',
    "lone surrogates in lists": '["\\udfff", ["\\ud800"]]',
    "a surrogate for a name": '{"\\ud800": 1}',
    "nul": '"\\u0000"',
    "no JSON": "{,}",
    "unquoted": "text",
}
RAW = {
    "nothing": b"",
    "null": b"null",
    "a number": b"1",
    "a list": b"[]",
    "half": b'{"prompt": "a',
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"what": 1}'.encode("utf-16"),
    "UTF-32 without a mark": '{"what": 1}'.encode("utf-32-be"),
    "a mark of UTF-8": b'\xef\xbb\xbf{"prompt": 1}',
    "two objects": b"{}{}",
    "deep": nested(500_000).encode(),
    "zeros": bytes(1000),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("serve") / "log"
    flags = ["--model", tiny_model, "--drafter", "ngram", "--threads", "1", "--no-request-log"]
    with serving(log, *flags, "--max-body-mib", str(LIMIT >> 20)) as served:
        yield served


def documented(server: Served) -> dict[str, dict[str, Any]]:
    """The document of each POST route: path to the properties of its body."""
    document = server.http.get("/openapi.json").json()
    found = {}
    for path, methods in document["paths"].items():
        if "post" in methods:
            schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            found[path] = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]["properties"]
    return found


def is_refused_well(response: httpx2.Response, what: object) -> None:
    """Or answered."""
    assert response.status_code in (200, 400, 404, 413, 422), (what, response.status_code, response.text[:300])
    if response.status_code != 200:
        sentence = response.json()["error"]["message"]
        assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 400, (what, sentence)


def goes_on(server: Served) -> None:
    assert server.answer(COMPLETIONS, SHORT)["usage"]["completion_tokens"] == 2


def test_these_are_all_the_routes(server: Served) -> None:
    assert documented(server).keys() == WHOLE.keys()


@pytest.mark.parametrize("path", WHOLE)
def test_no_value_of_any_field_breaks_a_route(server: Served, path: str) -> None:
    for field in documented(server)[path]:
        for name, value in VALUES.items():
            rest = {key: other for key, other in WHOLE[path].items() if key != field}
            body = json.dumps(rest)[:-1] + (", " if rest else "") + f"{json.dumps(field)}: {value}}}"
            is_refused_well(server.post(path, content=body.encode(), headers=JSON), (path, field, name))
    goes_on(server)


@pytest.mark.parametrize("path", WHOLE)
def test_bodies_that_are_none(server: Served, path: str) -> None:
    for name, content in RAW.items():
        response = server.post(path, content=content, headers=JSON)
        assert response.status_code == 400, (name, response.status_code, response.text[:200])
        is_refused_well(response, name)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        is_refused_well(server.post(path, content=b"a=b", headers={"Content-Type": kind}), kind)
    goes_on(server)


@pytest.mark.parametrize("path", ["/v1/chat/completions", COMPLETIONS])
def test_the_short_way_and_the_framework_refuse_alike(server: Served, path: str) -> None:
    """Another media type of JSON goes the framework's way (`serve.direct`)."""
    bad = {name: f'{{"prompt": {value}, "messages": {value}}}'.encode() for name, value in VALUES.items()}
    wrong = [json.dumps(WHOLE[path] | {name: "x"}).encode() for name in documented(server)[path]]
    for number, content in enumerate([*RAW.values(), *bad.values(), *wrong]):
        ways = [
            server.post(path, content=content, headers={"Content-Type": kind})
            for kind in ("application/json", "application/json; charset=utf-8", "application/x+json")
        ]
        if content and ways[0].status_code != 200:  # of an empty body the framework says that a field is missing
            assert len({(way.status_code, way.text) for way in ways}) == 1, (number, [way.text for way in ways])
        assert len({way.status_code for way in ways}) == 1


@pytest.mark.parametrize("path", WHOLE)
def test_unknown_and_doubled_fields(server: Served, path: str) -> None:
    whole = json.dumps(WHOLE[path])
    unknown = server.post(path, WHOLE[path] | {"never heard of": 1})
    assert unknown.status_code == 400 and "never heard of" in unknown.json()["error"]["message"]
    doubled = whole[:-1] + ', "model": 7, "model": "default"}'
    assert server.post(path, content=doubled.encode(), headers=JSON).status_code == 200  # the last one counts
    many = whole[:-1] + "".join(f', "field {i}": 1' for i in range(20_000)) + "}"
    response = server.post(path, content=many.encode(), headers=JSON)
    assert response.status_code == 400
    is_refused_well(response, "many unknown fields")
    goes_on(server)


@pytest.mark.parametrize("path", WHOLE)
def test_ten_megabytes(server: Served, path: str) -> None:
    response = server.post(path, content=b'{"prompt": "' + b"a" * 10_000_000 + b'"}', headers=JSON)
    assert response.status_code == 413
    is_refused_well(response, "10 MB")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "BREW"])
def test_methods(server: Served, method: str) -> None:
    for path in server.http.get("/openapi.json").json()["paths"]:
        response = server.http.request(method, path.replace("{name}", "default"))
        assert response.status_code < 500, (method, path)
    goes_on(server)


@pytest.mark.parametrize("name", ["%ff", "%00", "%ed%a0%80", "..%2f..%2fetc", "a" * 5000, "%F0%9F%9A%B4", "a/b/c", "%"])
def test_names_of_models(server: Served, name: str) -> None:
    response = server.http.get(f"/v1/models/{name}")
    assert response.status_code in (400, 404)
    is_refused_well(response, name)


def spoken(server: Served, request: bytes, hang_up: bool = False) -> bytes:
    """What the server says to these bytes; nothing where it only hangs up."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(request)
        if hang_up:
            return b""
        connection.shutdown(socket.SHUT_WR)
        try:
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("path", WHOLE)
def test_lengths_that_lie(server: Served, path: str) -> None:
    content = json.dumps(WHOLE[path]).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    for length, statuses in {
        len(content) + 1000: (b"", b"400"),  # the rest never comes
        len(content) - 3: (b"400",),
        LIMIT + 1: (b"413",),
        10**30: (b"413", b"400"),
        -1: (b"400",),
    }.items():
        said = spoken(server, head + f"Content-Length: {length}\r\n\r\n".encode() + content)
        assert said[9:12] in statuses, (length, said[:300])
        spoken(server, head + f"Content-Length: {length}\r\n\r\n".encode() + content[:5], hang_up=True)
    for line in (b"Content-Length: ten", b"Content-Length: 5\r\nContent-Length: 6", b"Transfer-Encoding: what"):
        assert spoken(server, head + line + b"\r\n\r\n" + content)[9:12] in (b"400", b"501"), line
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    assert spoken(server, chunked + b"zz\r\n" + content)[9:12] == b"400"
    assert spoken(server, chunked + b"5\r\n" + content[:5])[9:12] in (b"", b"400")
    goes_on(server)
