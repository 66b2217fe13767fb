"""What HTTP costs: the same requests through `paceline serve` and through the Python API, in turns, in one run.

    python benchmarks/serve_overhead.py --rounds 20

One JSON line for each concurrency: tokens per second of both (medians over the rounds), their ratio round by round with
its 95 % interval, and the processor time of each process for a token, in microseconds: `offline` is the Python API's,
`engine` and `web` are the server's two. Clients send what they have to and sleep until their answer is whole, as those
of another machine would seem to.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from paceline import LLM, SamplingParams
from paceline.assets import heldout_prompts
from paceline.bench.intervals import ratio
from paceline.serve.cores import available, engine_threads, keep_to, shared_out


def bodies(concurrency: int, max_tokens: int) -> list[dict[str, Any]]:
    """One request for each client, of the same length for all."""
    prompts = [prompt.question for prompt in heldout_prompts()[:concurrency]]
    fixed = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    return [{"prompt": prompt} | fixed for prompt in prompts]


def offline(llm: LLM, asked: list[dict[str, Any]]) -> None:
    params = [SamplingParams(**{k: v for k, v in body.items() if k != "prompt"}) for body in asked]
    llm.generate([body["prompt"] for body in asked], params)


def stream(port: int, body: dict[str, Any]) -> None:
    """One request to the end of its stream."""
    content = json.dumps(body | {"stream": True}).encode()
    lines = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close")
    head = "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 << 20)  # sleep until it is closed
        connection.sendall(head + content)
        received = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    assert b"data: [DONE]" in received, received[-300:]


def processor_time(pid: int | str) -> float:
    """Microseconds that a process has computed so far, all its threads together."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e3


@contextmanager
def serving(threads: int | None) -> Iterator[tuple[int, dict[str, int]]]:
    """The port, and the ids of the server's processes."""
    start = "from paceline.cli.main import main; main()"
    words = ["serve", "--port", "0", "--no-prefix-cache", "--no-request-log"]
    words += [] if threads is None else ["--threads", str(threads)]
    with subprocess.Popen([sys.executable, "-c", start, *words], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            (port,) = re.findall(r"http://\S+:(\d+)/v1", server.stderr.readline())
            (engine,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            yield int(port), {"web": server.pid, "engine": int(engine)}
        finally:
            server.terminate()


def compare(port: int, pids: dict[str, int], llm: LLM, concurrency: int, args: argparse.Namespace) -> dict[str, Any]:
    asked, tokens = bodies(concurrency, args.max_tokens), concurrency * args.max_tokens
    cores = available()
    _, spare = shared_out(cores, threads_of(args) or len(cores))
    rates: dict[str, list[float]] = {"offline": [], "http": []}
    spent: dict[str, list[float]] = {"offline": [], "engine": [], "web": []}
    with ThreadPoolExecutor(concurrency) as clients:
        for number in range(args.rounds + 1):
            keep_to(cores)
            took = {"offline": timed(lambda: offline(llm, asked), {"offline": "self"})}
            keep_to(spare)  # clients are elsewhere: not on the cores that the server's engine has
            took["http"] = timed(lambda: list(clients.map(lambda body: stream(port, body), asked)), pids)
            for way, (seconds, computed) in took.items() if number else ():  # the first round warms up
                rates[way].append(tokens / seconds)
                for name, microseconds in computed.items():
                    spent[name].append(microseconds / tokens)
    return {
        "concurrency": concurrency,
        "tokens_per_second": {way: round(median(values), 1) for way, values in rates.items()},
        "http_over_offline": ratio(rates["http"], rates["offline"]),
        "processor_us_a_token": {name: round(median(values), 1) for name, values in spent.items()},
    }


def timed(work: Any, pids: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Seconds, and the microseconds that each of these processes computed meanwhile."""
    before, begun = {name: processor_time(pid) for name, pid in pids.items()}, time.perf_counter()
    work()
    seconds = time.perf_counter() - begun
    return seconds, {name: processor_time(pid) - before[name] for name, pid in pids.items()}


def threads_of(args: argparse.Namespace) -> int | None:
    """Those of the engine, in both ways; None: torch's own choice."""
    threads: int | None = args.threads
    return engine_threads(len(available())) if threads is None else threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as paceline serve takes")
    args = parser.parse_args()
    with serving(args.threads) as (port, pids):
        llm = LLM(threads=threads_of(args), enable_prefix_caching=False)
        for concurrency in args.concurrency:
            print(json.dumps(compare(port, pids, llm, concurrency, args)), flush=True)


if __name__ == "__main__":
    main()
