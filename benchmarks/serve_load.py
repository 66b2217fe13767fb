"""Many streaming clients at once against `paceline serve`, some of which leave: is every answer its own, and whole?

    paceline serve --port 8000 --max-num-seqs 16 --max-queue 200 &
    python benchmarks/serve_load.py --clients 80 --seconds 300

Each client sends one request after another, of mixed lengths and with a seed; one in ten leaves in the middle. Every
full answer is compared with the text that the Python API gives for it. Prints one JSON object; exit 1 if a token is
lost, doubled or another's, if a block is leaked, or if memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
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
    memory: list[tuple[float, int]] = field(default_factory=list)


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


async def watch(pids: list[int], end: float, tally: Tally) -> None:
    """Resident bytes of the server's processes, once a second."""
    while time.monotonic() < end:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        tally.memory.append((time.monotonic(), pages * 4096))
        await asyncio.sleep(1)


async def gauges(http: httpx2.AsyncClient) -> dict[str, float]:
    """What must be zero when nobody is there."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    for _ in range(100):
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


def growth(memory: list[tuple[float, int]]) -> float:
    """Resident bytes of the last fifth over those of the second fifth, minus 1."""
    part = len(memory) // 5
    second, last = memory[part : 2 * part], memory[-part:]
    return sum(size for _, size in last) / max(1, sum(size for _, size in second)) - 1 if part else 0.0


async def load(args: argparse.Namespace) -> dict[str, Any]:
    tally, begun = Tally(), time.monotonic()
    end = begun + args.seconds
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=args.url, timeout=120, limits=limits) as http:
        clients = [client(http, args.seed + number, end, tally) for number in range(args.clients)]
        await asyncio.gather(*clients, watch(args.pid or [], end, tally))
        left_over = await gauges(http)
    tokens = sum(body["max_tokens"] for body, _ in tally.answers)
    checked = tally.answers[: args.check] if args.check else tally.answers
    return {
        "clients": args.clients,
        "seconds": round(time.monotonic() - begun, 1),
        "answers": len(tally.answers),
        "tokens_per_second": round(tokens / (time.monotonic() - begun), 1),
        "left": tally.left,
        "refused": tally.refused,
        "broken": tally.broken[:10],
        "compared": len(checked),
        "different": differing(checked, args.model),
        "left_over": left_over,
        "memory_growth": round(growth(tally.memory), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="as the server's, for the comparison")
    parser.add_argument("--clients", type=int, default=80)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", type=int, help="compare only so many answers")
    parser.add_argument("--pid", type=int, action="append", help="processes whose memory is watched; repeatable")
    report = asyncio.run(load(parser.parse_args()))
    print(json.dumps(report))
    good = not report["broken"] and not report["different"] and not any(report["left_over"].values())
    sys.exit(0 if good and report["memory_growth"] <= 0.02 else 1)


if __name__ == "__main__":
    main()
