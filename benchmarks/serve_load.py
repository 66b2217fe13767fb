"""Many streaming clients at once against `paceline serve`, some of which leave: is every answer its own, and whole?

    python benchmarks/serve_load.py --clients 80 --seconds 300 --json load.json

Starts the server, unless `--url` names one. Each client sends one request after another, of mixed lengths and with a
seed; one in ten leaves in the middle. Every full answer is compared with the text that the Python API gives for it.
Prints one JSON object, the memory of both processes in it; exit 1 if a token is lost, doubled or another's, if a block
is leaked, or if the memory of the last fifth of the time is more than 2 % above that of the second fifth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

TEXT = "the history of a city by the sea begins with ships and the people who built them long ago"


@dataclass
class Tally:
    """What the clients saw. `answers`: the full ones, with their requests."""

    answers: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    left: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)
    memory: list[dict[str, int]] = field(default_factory=list)


def request(rng: random.Random) -> dict[str, Any]:
    return {
        "prompt": " ".join(rng.choices(TEXT.split(), k=rng.choice((3, 12, 60)))),
        "max_tokens": rng.choice((4, 16, 48)),
        "temperature": rng.choice((0.0, 0.8)),
        "seed": rng.randrange(1 << 30),
        "ignore_eos": True,
        "stream": True,
    }


async def one(http: httpx2.AsyncClient, body: dict[str, Any], leaves: bool, tally: Tally) -> None:
    """One request to its end, or, for one who leaves, to its second event."""
    text, events, last = "", 0, ""
    async with http.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code == 429:
            tally.refused += 1
            await asyncio.sleep(float(response.headers["Retry-After"]))
            return
        if response.status_code != 200:
            tally.broken.append((await response.aread()).decode()[:200])
            return
        async for line in response.aiter_lines():
            if not line:
                continue
            last, events = line.removeprefix("data: "), events + 1
            if last != "[DONE]":
                text += json.loads(last)["choices"][0]["text"]
            if leaves and events == 2:
                tally.left += 1
                return
    if last == "[DONE]":
        tally.answers.append((body, text))
    else:
        tally.broken.append(last[:200])


async def client(http: httpx2.AsyncClient, seed: int, end: float, tally: Tally) -> None:
    rng = random.Random(seed)
    while time.monotonic() < end:
        try:
            await one(http, request(rng), rng.random() < 0.1, tally)
        except Exception as error:  # whatever it was, an answer is missing
            tally.broken.append(repr(error)[:200])


async def watch(pids: dict[str, int], end: float, tally: Tally) -> None:
    """Resident bytes of the server's processes, once a second."""
    while pids and time.monotonic() < end:
        pages = {name: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for name, pid in pids.items()}
        tally.memory.append({name: count * 4096 for name, count in pages.items()})
        await asyncio.sleep(1)


IDLE = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


async def gauges(http: httpx2.AsyncClient, names: tuple[str, ...] = IDLE) -> dict[str, float]:
    """Of the server's numbers those; `IDLE` are zero when nobody is there, which may take a moment."""
    for _ in range(100 if names is IDLE else 1):
        lines = (await http.get("/metrics")).text.splitlines()
        found = {
            name: float(line.split()[-1]) for name in names for line in lines if line.startswith(f"paceline:{name}{{")
        }
        if not any(found.values()):
            break
        await asyncio.sleep(0.1)
    return found


def differing(answers: list[tuple[dict[str, Any], str]], model: str | None) -> int:
    """How many answers are not the text of the Python API."""
    from paceline import LLM, SamplingParams

    params = [SamplingParams(**{k: v for k, v in body.items() if k not in ("prompt", "stream")}) for body, _ in answers]
    offline = LLM(model).generate([body["prompt"] for body, _ in answers], params) if answers else []
    return sum(result.outputs[0].text != text for result, (_, text) in zip(offline, answers, strict=True))


def fifths(memory: list[dict[str, int]]) -> list[float]:
    """Mean resident MiB of both processes together, in each fifth of the time."""
    part, total = len(memory) // 5, [sum(each.values()) for each in memory]
    return [round(sum(total[i * part : (i + 1) * part]) / part / 2**20, 1) for i in range(5)] if part else []


@contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, int]]]:
    """Its URL, and the processes whose memory is watched; none for a server that was there before."""
    if args.url:
        yield args.url, {}
        return
    start = "from paceline.cli.main import main; main()"
    words = ["serve", "--port", "0", "--no-request-log", *(["--model", args.model] if args.model else []), *args.flags]
    with subprocess.Popen([sys.executable, "-c", start, *words], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            (url,) = re.findall(r"(http://\S+)/v1", process.stderr.readline())
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield url, {"web": process.pid, "engine": int(children[0])}
        finally:
            process.terminate()


async def load(args: argparse.Namespace, url: str, pids: dict[str, int]) -> tuple[dict[str, Any], Tally]:
    tally, begun = Tally(), time.monotonic()
    end = begun + args.seconds
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        clients = [client(http, args.seed + number, end, tally) for number in range(args.clients)]
        await asyncio.gather(*clients, watch(pids, end, tally))
        left_over = await gauges(http)
        counted = await gauges(http, ("num_preemptions_total", "prefix_cache_hits_total", "engine_restarts_total"))
    tokens = sum(body["max_tokens"] for body, _ in tally.answers)
    return {
        "clients": args.clients,
        "seconds": round(time.monotonic() - begun, 1),
        "answers": len(tally.answers),
        "tokens_per_second": round(tokens / (time.monotonic() - begun), 1),
        "left": tally.left,
        "refused": tally.refused,
        "broken": tally.broken[:10],
        "left_over": left_over,
        "counted": counted,
        "memory_mib": fifths(tally.memory),
        "memory_mib_at_the_end": {name: round(size / 2**20, 1) for name, size in (tally.memory or [{}])[-1].items()},
    }, tally


def grown(mib: list[float]) -> float:
    """The last fifth over the second one, minus 1."""
    return round(mib[4] / mib[1] - 1, 4) if mib else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that is there; its memory is not watched")
    parser.add_argument("--model", help="the server's, also for the comparison")
    parser.add_argument("--clients", type=int, default=80)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", type=int, help="compare only so many answers")
    parser.add_argument("--json", type=Path, help="where the record goes as well")
    parser.add_argument("flags", nargs="*", help="after --: further flags of paceline serve")
    args = parser.parse_args()
    with server(args) as (url, pids):
        report, tally = asyncio.run(load(args, url, pids))
    checked = tally.answers[: args.check] if args.check else tally.answers
    report |= {"compared": len(checked), "different": differing(checked, args.model)}
    report["memory_growth"] = grown(report["memory_mib"])
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))
    good = not report["broken"] and not report["different"] and not any(report["left_over"].values())
    sys.exit(0 if good and report["memory_growth"] <= 0.02 else 1)


if __name__ == "__main__":
    main()
