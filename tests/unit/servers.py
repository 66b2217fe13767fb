"""`paceline serve` as a process, on a free port, for tests that talk to it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 60.0  # seconds, on a machine that is busy with other things


def until(holds: Callable[[], bool], what: str) -> None:
    """Waits until it holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Served:
    def __init__(self, process: subprocess.Popen[bytes], url: str, key: str | None, log: Path) -> None:
        self.process, self.url, self._log = process, url, log
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=PATIENCE)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        return self.http.post(path, **({"json": body} if body is not None else {}) | options)

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a stream that ends well."""
        with self.http.stream("POST", path, json=body | {"stream": True}) as response:
            assert response.status_code == 200, response.read()
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == f"paceline:{name}"]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def logged(self) -> list[dict[str, Any]]:
        """The events that the server wrote down."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    @property
    def engine_pid(self) -> int:
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)


@contextmanager
def serving(log: Path, *flags: str | Path, key: str | None = None) -> Iterator[Served]:
    """A server that is up. It is gone at the end, however the test went."""
    command = [sys.executable, "-c", "from paceline.cli.main import main; main()", "serve", "--port", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *map(str, flags)], stderr=file)
    try:
        until(lambda: process.poll() is not None or " at http://" in log.read_text(), "the server did not start")
        assert process.poll() is None, log.read_text()
        (url,) = re.findall(r" at (http://\S+)/v1", log.read_text())
        served = Served(process, url, key, log)
        with served.http:
            yield served
    finally:
        process.kill()
        process.wait()
