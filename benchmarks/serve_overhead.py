"""What HTTP costs: the same requests through `paceline serve` and through the Python API, in turns, in one run.

    python benchmarks/serve_overhead.py --rounds 5

For each concurrency it prints tokens per second of both (medians over the rounds) and their ratio, as JSON. The server
has its engine in another process, so it wants a second core for the web process and the clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from statistics import median
from typing import Any

import httpx2

from paceline import LLM, SamplingParams
from paceline.assets import heldout_prompts
from paceline.serve.cores import available, keep_to, shared_out


def bodies(concurrency: int, max_tokens: int) -> list[dict[str, Any]]:
    """One request for each client, of the same length for all."""
    prompts = [prompt.question for prompt in heldout_prompts()[:concurrency]]
    fixed = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    return [{"prompt": prompt} | fixed for prompt in prompts]


def offline(llm: LLM, asked: list[dict[str, Any]]) -> float:
    """Seconds."""
    params = [SamplingParams(**{k: v for k, v in body.items() if k != "prompt"}) for body in asked]
    begun = time.perf_counter()
    llm.generate([body["prompt"] for body in asked], params)
    return time.perf_counter() - begun


async def over_http(http: httpx2.AsyncClient, asked: list[dict[str, Any]]) -> float:
    """Seconds until the last stream has ended."""

    async def one(body: dict[str, Any]) -> None:
        async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
            *_, last = [line async for line in response.aiter_lines() if line]
            assert last == "data: [DONE]", last

    begun = time.perf_counter()
    await asyncio.gather(*map(one, asked))
    return time.perf_counter() - begun


async def compare(url: str, llm: LLM, args: argparse.Namespace) -> None:
    cores = available()
    _, spare = shared_out(cores, args.threads)
    async with httpx2.AsyncClient(base_url=url, timeout=600) as http:
        for concurrency in args.concurrency:
            asked = bodies(concurrency, args.max_tokens)
            rates: dict[str, list[float]] = {"offline": [], "http": []}
            for number in range(args.rounds + 1):
                keep_to(cores)
                seconds = {"offline": offline(llm, asked)}
                keep_to(spare)  # clients are elsewhere: not on the cores that the server's engine has
                seconds["http"] = await over_http(http, asked)
                if number:  # the first round warms up
                    for way, took in seconds.items():
                        rates[way].append(concurrency * args.max_tokens / took)
            found = {way: round(median(values), 1) for way, values in rates.items()}
            print(
                json.dumps({"concurrency": concurrency} | found | {"ratio": round(found["http"] / found["offline"], 4)})
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    start = "from paceline.cli.main import main; main()"
    words = ["serve", "--port", "0", "--no-prefix-cache", "--no-request-log", "--threads", str(args.threads)]
    with subprocess.Popen([sys.executable, "-c", start, *words], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            (url,) = re.findall(r"(http://\S+)/v1", server.stderr.readline())
            asyncio.run(compare(url, LLM(threads=args.threads, enable_prefix_caching=False), args))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
