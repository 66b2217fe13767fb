"""What HTTP costs: the same requests through `paceline serve` and through the Python API, in turns, in one run.

    python benchmarks/serve_overhead.py --rounds 20
    python benchmarks/serve_overhead.py --server "" --server "OMP_PROC_BIND=true core=1" --server "--threads 1"

Each `--server` is one more way to serve, measured in the same rounds: environment variables, flags of `paceline serve`,
and `core=N`, which keeps its web process to that core. One JSON line for each concurrency and server: tokens per second
of both ways (medians over the rounds), their ratio round by round with its 95 % interval, and the processor time of
each process for a token, in microseconds: `offline` is the Python API's, `engine` and `web` are the server's two,
`client` is what asks. Clients send what they have to and sleep until their answer is whole, as those of another machine
would seem to. Each engine chooses for itself how much it drafts: `tokens_a_verification` tells whether they chose
alike, and `-k` makes them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from paceline import LLM, SamplingParams
from paceline.assets import heldout_prompts
from paceline.bench.intervals import ratio
from paceline.outputs import RequestOutput
from paceline.serve.cores import available, engine_threads, keep_to, shared_out

PORT = re.compile(r"http://\S+:(\d+)/v1")
SPINNING = 0.1  # seconds after which the idle threads of whoever computed before sleep, and leave the cores to others
PLAIN = ["serve", "--port", "0", "--no-prefix-cache", "--no-request-log"]


@dataclass
class Way:
    """One way to have the same answers, and what each round of it took.

    verified: how many verifications there were, of what `ask` returns. pids: its processes, by what they are called.
    cores: those of who asks, meanwhile. tokens: a second. lengths: tokens a verification."""

    ask: Callable[[], Any]
    verified: Callable[[Any], int]
    pids: dict[str, int]
    cores: list[int]
    tokens: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    spent: dict[str, list[float]] = field(default_factory=dict)

    def run(self, tokens: int, counts: bool) -> None:
        keep_to(self.cores)
        time.sleep(SPINNING)
        before, begun = {name: processor_time(pid) for name, pid in self.pids.items()}, time.perf_counter()
        answers = self.ask()
        seconds = time.perf_counter() - begun
        computed = {name: processor_time(pid) - before[name] for name, pid in self.pids.items()}
        if counts:
            self.tokens.append(tokens / seconds)
            self.lengths.append(tokens / self.verified(answers))
            for name, microseconds in computed.items():
                self.spent.setdefault(name, []).append(microseconds / tokens)


def processor_time(pid: int) -> float:
    """Microseconds that a process has computed so far, all its threads together."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e3


def bodies(concurrency: int, max_tokens: int) -> list[dict[str, Any]]:
    """One request for each client, of the same length for all."""
    prompts = [prompt.question for prompt in heldout_prompts()[:concurrency]]
    fixed = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    return [{"prompt": prompt} | fixed for prompt in prompts]


def offline(llm: LLM, asked: list[dict[str, Any]]) -> list[RequestOutput]:
    prompts = [body["prompt"] for body in asked]
    params = [SamplingParams(**{name: value for name, value in body.items() if name != "prompt"}) for body in asked]
    return llm.generate(prompts, params)


def posted(body: dict[str, Any]) -> bytes:
    """The bytes of a request for a stream, whose connection ends with it."""
    content = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    lines = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close")
    return "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode() + content


def streams(port: int, requests: list[bytes]) -> list[bytes]:
    """All requests at once, each in a connection of its own, to the ends of their streams."""
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in requests]
        for connection, request in zip(connections, requests, strict=True):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 << 20)  # sleep until it is closed
            connection.sendall(request)
        return [whole(connection) for connection in connections]


def whole(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


def verified_offline(outputs: list[RequestOutput]) -> int:
    return sum(output.outputs[0].speculation.verifications for output in outputs)


def verified_online(answers: list[bytes]) -> int:
    """As the usage in each stream's last event tells."""
    events = [re.findall(rb"data: (.*)", answer) for answer in answers]
    assert all(each[-1].strip() == b"[DONE]" for each in events), answers[0][-300:]
    return sum(json.loads(each[-2])["usage"]["speculation"]["verifications"] for each in events)


@contextmanager
def serving(words: str) -> Iterator[tuple[int, dict[str, int]]]:
    """The port, and the ids of the server's processes. words: as `--server` takes them."""
    flags = shlex.split(words)
    env = dict(word.split("=", 1) for word in flags if re.match("[A-Z_]+=", word))
    cores = [int(word.removeprefix("core=")) for word in flags if word.startswith("core=")]
    rest = [word for word in flags if not re.match("[A-Z_]+=|core=", word)]
    command = [sys.executable, "-c", "from paceline.cli.main import main; main()", *PLAIN, *rest]
    with subprocess.Popen(command, env=os.environ | env, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            (port,) = PORT.findall(server.stderr.readline())
            (engine,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            if cores:
                os.sched_setaffinity(server.pid, cores)
            yield int(port), {"web": server.pid, "engine": int(engine)}
        finally:
            server.terminate()


def compare(
    servers: dict[str, tuple[int, dict[str, int]]], llm: LLM, concurrency: int, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    asked, cores, me = bodies(concurrency, args.max_tokens), available(), os.getpid()
    _, spare = shared_out(cores, threads_of(args) or len(cores))  # not on the cores that the server's engine has
    requests = [posted(body) for body in asked]
    base = Way(partial(offline, llm, asked), verified_offline, {"offline": me}, cores)
    ways = {
        words: Way(partial(streams, port, requests), verified_online, {"client": me} | pids, spare or cores)
        for words, (port, pids) in servers.items()
    }
    for number in range(args.rounds + 1):
        for way in (base, *list(ways.values())[:: 1 if number % 2 else -1]):
            way.run(concurrency * args.max_tokens, counts=number > 0)  # the first round warms up
    keep_to(cores)
    for words, way in ways.items():
        yield {
            "concurrency": concurrency,
            "server": words,
            "tokens_per_second": {"offline": round(median(base.tokens), 1), "http": round(median(way.tokens), 1)},
            "http_over_offline": ratio(way.tokens, base.tokens),
            "tokens_a_verification": {"offline": round(median(base.lengths), 2), "http": round(median(way.lengths), 2)},
            "processor_us_a_token": {
                name: round(median(values), 1) for name, values in (base.spent | way.spent).items()
            },
        }


def threads_of(args: argparse.Namespace) -> int | None:
    """Those of the engine, in both ways; None: torch's own choice."""
    threads: int | None = args.threads
    return engine_threads(len(available())) if threads is None else threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, help="of the engine; by default as many as paceline serve takes")
    parser.add_argument("-k", default="auto", help="how many tokens to draft, in all engines; default %(default)s")
    parser.add_argument(
        "--server", metavar="WORDS", action="append", help="one more way to serve; by default one, as it is"
    )
    args = parser.parse_args()
    same = f"-k {args.k} " + ("" if args.threads is None else f"--threads {args.threads} ")
    with ExitStack() as stack:
        servers = {words: stack.enter_context(serving(same + words)) for words in args.server or [""]}
        k = args.k if args.k == "auto" else int(args.k)
        llm = LLM(threads=threads_of(args), enable_prefix_caching=False, num_speculative_tokens=k)
        for concurrency in args.concurrency:
            for line in compare(servers, llm, concurrency, args):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
