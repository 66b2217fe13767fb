"""The share of a step that is not model arithmetic: planning, assembling, verifying, committing.

    python benchmarks/host_share.py [--model DIR] [--prompts 16] [--max-tokens 64] [--rounds 5] [--threads N]

For batches of 1 and 16, temperatures 0 and 0.8, without drafter and with MTP. The eight take turns, round by round,
and the figures are medians over the rounds. Target passes and drafting are arithmetic, all else is the host's
(`engine/stats.py`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import product
from statistics import median

from paceline.assets import heldout_prompts
from paceline.engine.stats import HOST
from paceline.llm import LLM, Prompt
from paceline.request import SamplingParams

BATCHES, TEMPERATURES, DRAFTERS = (1, 16), (0.0, 0.8), ("none", "mtp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a checkpoint; the bundled one by default")
    for name, default in (("prompts", 16), ("max-tokens", 64), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    args = parser.parse_args()
    first = LLM(args.model, threads=args.threads, enable_prefix_caching=False)
    llms = {(d, b): first.with_options(drafter=d, max_num_seqs=b) for d, b in product(DRAFTERS, BATCHES)}
    prompts = [prompt.content for prompt in heldout_prompts()[: args.prompts]]
    cases = list(product(DRAFTERS, BATCHES, TEMPERATURES))
    shares: dict[tuple[str, int, float], list[float]] = {case: [] for case in cases}
    for number in range(args.rounds + 1):
        for drafter, batch, temperature in cases:
            params = SamplingParams(temperature=temperature, seed=0, max_tokens=args.max_tokens, ignore_eos=True)
            share = host_share(llms[drafter, batch], prompts, params)
            if number:  # the first round warms up
                shares[drafter, batch, temperature].append(share)
    medians = {case: median(found) for case, found in shares.items()}
    if args.json:
        rows = [dict(zip(("drafter", "batch", "temperature"), case, strict=True)) for case in cases]
        print(json.dumps([row | {"host_share": medians[case]} for row, case in zip(rows, cases, strict=True)]))
        return
    print(f"{len(prompts)} prompts x {args.max_tokens} tokens, medians of {args.rounds} rounds")
    print("drafter  batch  temperature  host share")
    for (drafter, batch, temperature), share in medians.items():
        print(f"{drafter:7} {batch:6d} {temperature:12.1f} {share:10.1%}")


def host_share(llm: LLM, prompts: list[Prompt], params: SamplingParams) -> float:
    """Of these prompts alone, whatever the engine did before."""
    before = dict(llm.engine.stats.seconds)
    llm.generate(prompts, params)
    return share_since(before, llm.engine.stats.seconds)


def share_since(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The host's part of the time between two readings of `EngineStats.seconds`."""
    spent = {part: after[part] - before[part] for part in after}
    return sum(spent[part] for part in HOST) / sum(spent.values())


if __name__ == "__main__":
    main()
