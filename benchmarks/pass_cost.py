"""The cost of one pass: the target's, and each MTP depth's, by requests, rows of each and context.

    python benchmarks/pass_cost.py [--model DIR] [--requests 1,4,8] [--rows 1,2,4] [--contexts 200] [--seconds 30]

A pass is what a step runs: hidden states and the logits of all its rows. Contexts hold random numbers, blocks lie
side by side. All cases take turns, round by round, until the time is over; the figures are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import product
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch

from paceline.batch import ForwardBatch, Row, make_batch
from paceline.cache.attend import PagedAttend
from paceline.cache.pool import Pool
from paceline.checkpoint.resolve import resolve_model
from paceline.models.decoder import DecoderModel
from paceline.models.mtp import MTP, MTPDepth
from paceline.runtime.build import load_mtp, load_target

BLOCK = 16


class Case(NamedTuple):
    """`rows` new tokens of each of `requests` requests that have read `context` before."""

    requests: int
    rows: int
    context: int

    def batch(self, vocab_size: int, first: int = 0) -> ForwardBatch:
        need = -(-(self.context + self.rows) // BLOCK)
        tokens = torch.randint(vocab_size, (self.requests, self.rows), generator=torch.Generator().manual_seed(0))
        tables = [list(range(r * need, (r + 1) * need)) for r in range(self.requests)]
        rows = [Row(t, self.context, table) for t, table in zip(tokens.tolist(), tables, strict=True)]
        return make_batch(rows, BLOCK, first=first, take=range(self.requests * self.rows))


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    path = resolve_model(args.model)
    target = load_target(path)
    mtp = load_mtp(path, target, quantization="auto")
    cases = [Case(*sizes) for sizes in product(args.requests, args.rows, args.contexts)]
    names = ["target", *(f"depth {d + 1}" for d in range(len(mtp.depths)))]
    passes = passes_of(target, mtp, cases)
    spent = in_turns(passes, args.seconds)
    found = {case: [median(times) for times in spent[i :: len(cases)]] for i, case in enumerate(cases)}
    if args.json:
        print(json.dumps([{**case._asdict(), **dict(zip(names, times, strict=True))} for case, times in found.items()]))
        return
    print(f"{torch.get_num_threads()} threads, {len(spent[0])} rounds, medians in ms")
    print("requests   rows  context " + "".join(f"{name:>10}" for name in names))
    for case, times in found.items():
        print(f"{case.requests:8d} {case.rows:6d} {case.context:8d} " + "".join(f"{1e3 * t:10.3f}" for t in times))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a checkpoint; the bundled one by default")
    for name, default in (("requests", [1, 2, 4, 8, 16, 40, 80]), ("rows", [1, 2, 4]), ("contexts", [200])):
        parser.add_argument(f"--{name}", type=numbers, default=default, help="numbers with commas between")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="one JSON object a case, in seconds, instead of the table")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def passes_of(target: DecoderModel, mtp: MTP, cases: list[Case]) -> list[Callable[[], object]]:
    """Every case's target pass, then every case's pass of depth 1, and so on."""
    blocks = max(case.requests * -(-(case.context + case.rows) // BLOCK) for case in cases)
    hidden, vocab = target.config.hidden_size, target.config.vocab_size
    pools = [Pool(model.cache, blocks, BLOCK, target.norm.weight.dtype) for model in (target, mtp)]
    for layer in (*pools[0].k, *pools[1].k):
        layer.normal_()
    made: list[Callable[[], object]] = [target_pass(target, pools[0], case.batch(vocab)) for case in cases]
    for d, depth in enumerate(mtp.depths):
        assert isinstance(depth, MTPDepth)
        for case in cases:
            features = torch.randn(case.requests * case.rows, hidden).to(target.norm.weight.dtype)
            made.append(depth_pass(depth, pools[1], case.batch(vocab, d + 1), features))
    return made


def target_pass(target: DecoderModel, pool: Pool, batch: ForwardBatch) -> Callable[[], object]:
    return lambda: target.logits(target(batch.tokens, batch.positions, PagedAttend(pool, batch)))


def depth_pass(depth: MTPDepth, pool: Pool, batch: ForwardBatch, features: torch.Tensor) -> Callable[[], object]:
    return lambda: depth.logits(depth(batch.tokens, batch.positions, PagedAttend(pool, batch), features))


@torch.inference_mode()
def in_turns(passes: list[Callable[[], object]], seconds: float) -> list[list[float]]:
    """The times of each pass: one a round, in as many rounds as there is time for, three at least."""
    for run in passes:  # the first of each loads code and memory
        run()
    spent: list[list[float]] = [[] for _ in passes]
    until = perf_counter() + seconds
    while len(spent[0]) < 3 or perf_counter() < until:
        for run, times in zip(passes, spent, strict=True):
            run()  # fetches what the others drove out of the caches: a server runs like after like
            begin = perf_counter()
            run()
            times.append(perf_counter() - begin)
    return spent


if __name__ == "__main__":
    main()
