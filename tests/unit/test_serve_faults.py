"""The server when things go wrong: no key, too much at once, an engine that is killed, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from servers import PATIENCE, Served, serving, until

from paceline.errors import UserError
from paceline.serve.run import run
from paceline.serve.settings import ServerSettings

COMPLETIONS = "/v1/completions"
LONG: dict[str, Any] = {"prompt": "one two", "max_tokens": 240, "ignore_eos": True, "stream": True}
SHORT: dict[str, Any] = {"prompt": "one two", "max_tokens": 4}
KEY = "s3cret"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[list[Served]]:
    """Two, started together: one to drain, one to stop at once."""
    logs = tmp_path_factory.mktemp("serve")
    flags = ["--model", tiny_model, "--drafter", "ngram", "-k", "2", "--max-num-seqs", "2", "--max-queue", "1"]
    flags += ["--max-body-mib", "1", "--served-model-name", "tiny", "--served-model-name", "other", "--threads", "1"]
    flags += ["--api-key", "k2", "--api-key", KEY]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        managers = [serving(logs / f"{i}.log", *flags, key=KEY) for i in range(2)]
        for manager in managers:
            stack.push(manager)
        yield list(pool.map(lambda manager: manager.__enter__(), managers))


@pytest.fixture
def server(servers: list[Served]) -> Served:
    return servers[0]


def test_a_key_is_asked_for(server: Served) -> None:
    for header in ("", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer \u00e9"):
        response = server.post(COMPLETIONS, SHORT, headers={"Authorization": header.encode("latin-1")})
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert server.http.get("/metrics", headers={"Authorization": "no"}).status_code == 401
    for path in ("/health", "/ready", "/version"):
        assert server.http.get(path, headers={"Authorization": "no"}).status_code == 200
    assert server.post(COMPLETIONS, SHORT, headers={"Authorization": "Bearer k2"}).status_code == 200


def test_names_and_drafters(server: Served) -> None:
    assert [model["id"] for model in server.http.get("/v1/models").json()["data"]] == ["tiny", "other"]
    assert server.answer(COMPLETIONS, SHORT | {"model": "other"})["model"] == "other"
    refused = server.post(COMPLETIONS, SHORT | {"speculation": {"drafter": "mtp"}})
    assert refused.status_code == 400 and "ngram or none" in refused.text
    used = server.answer(COMPLETIONS, SHORT | {"speculation": {"drafter": "ngram"}})["usage"]["speculation"]
    assert used["num_speculative_tokens"] == 2


def test_a_body_may_be_too_large(server: Served) -> None:
    """Also one that does not say how large it is."""
    body = json.dumps(SHORT | {"prompt": "x" * (1 << 20)}).encode()
    headers = {"Content-Type": "application/json"}

    def in_parts() -> Iterator[bytes]:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    for content in (body, in_parts()):
        response = server.post(COMPLETIONS, content=content, headers=headers)
        assert response.status_code == 413 and "1 MiB" in response.json()["error"]["message"]
    assert server.post(COMPLETIONS, SHORT).status_code == 200


def test_fast_steps_that_share_a_chunk_lose_nothing(server: Served) -> None:
    """This server gathers what comes within 32 ms."""
    body = LONG | {"seed": 3, "n": 2, "stop": ["never said"]}
    wholes = [choice["text"] for choice in server.answer(COMPLETIONS, body | {"stream": False})["choices"]]
    found = ["", ""]
    for event in server.events(COMPLETIONS, body):
        (choice,) = event["choices"]
        found[choice["index"]] += choice["text"]
    assert found == wholes and all(wholes)


def test_a_full_queue_says_when_to_come_back(server: Served) -> None:
    with server.http.stream("POST", COMPLETIONS, json=LONG | {"n": 3}) as response:
        lines = response.iter_lines()
        next(lines)
        refused = server.post(COMPLETIONS, SHORT)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
    until(lambda: server.post(COMPLETIONS, SHORT).status_code == 200, "the room was not given back")
    assert server.post(COMPLETIONS, SHORT | {"n": 4}).status_code == 400


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_client_that_never_reads_holds_up_nobody(server: Served) -> None:
    """Its answers come to their end in the engine, others are served, and what nobody reads stays small."""
    body = json.dumps(LONG | {"n": 2, "logprobs": 20, "stop": ["never said"]}).encode()
    address = server.url.removeprefix("http://").split(":")
    before = resident(server.process.pid)
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((address[0], int(address[1])))
        head = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        lazy.sendall(f"POST {COMPLETIONS} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: server.metric("generation_tokens_total") > 10, "it was not begun")
        until(lambda: server.post(COMPLETIONS, SHORT).status_code == 200, "nobody else got in")
        until(lambda: server.metric("num_requests_running") == 0, "the engine waits for a client")
        assert server.metric("kv_cache_usage_perc") == 0
        assert resident(server.process.pid) - before < 64 << 20
    assert server.post(COMPLETIONS, SHORT).status_code == 200


def test_a_killed_engine_is_an_error_and_comes_back(server: Served) -> None:
    with server.http.stream("POST", COMPLETIONS, json=LONG) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        os.kill(server.engine_pid, signal.SIGKILL)
        *_, last = lines  # it ends, and not as a good answer does
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "service_unavailable_error"
    assert server.post(COMPLETIONS, SHORT).status_code == server.http.get("/ready").status_code == 503
    until(lambda: server.http.get("/ready").status_code == 200, "the engine did not come back")
    assert server.answer(COMPLETIONS, SHORT)["choices"][0]["finish_reason"]
    assert server.metric("engine_restarts_total") == 1
    events = [line["event"] for line in server.logged() if line["event"] != "request"]
    assert events == ["engine_died", "engine_ready"]


def test_a_port_that_is_taken(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"{port}.*--port"):
            run(tiny_model, ServerSettings(port=port))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_log_that_cannot_be_written(tiny_model: Path) -> None:
    """Not a line of it, from the start to the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = "from paceline.cli.main import main; main()"
    command = [sys.executable, "-c", start, "serve", "--model", str(tiny_model), "--port", str(port), "--threads", "1"]
    with open("/dev/full", "wb") as full, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
        process = subprocess.Popen(command, stderr=full)
        try:
            until(lambda: process.poll() is not None or answers(http), "the server did not start")
            assert http.post(COMPLETIONS, json=SHORT).status_code == 200
            assert http.post(COMPLETIONS, json=SHORT | {"n": 0}).status_code == 400
            process.terminate()
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()


def answers(http: httpx2.Client) -> bool:
    try:
        return http.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False


def test_the_first_signal_drains(server: Served) -> None:
    """What is open is answered to its end, nobody else gets in, and nothing is left."""
    engine = server.engine_pid
    with server.http.stream("POST", COMPLETIONS, json=LONG) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        os.kill(engine, signal.SIGTERM)  # a service manager tells all processes
        server.process.terminate()
        *_, finish, done = lines
    assert done == "data: [DONE]" and json.loads(finish[6:])["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(PATIENCE) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


def test_the_second_signal_stops(servers: list[Served]) -> None:
    server = servers[1]
    engine = server.engine_pid
    with server.http.stream("POST", COMPLETIONS, json=LONG | {"n": 3}) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(engine, signal.SIGSTOP)  # so that a drain would take for ever
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)
