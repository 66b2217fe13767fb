"""Our plain decoding against transformers' `generate`: same model, dtype, threads, prompts and token counts, batch 1.

    python benchmarks/against_transformers.py [--model DIR] [--prompts 12] [--max-tokens 64] [--repeats 3] [--threads N]

The two run in turn, prompt by prompt; the figures are medians over the repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from transformers import AutoModelForCausalLM

from paceline.assets import heldout_prompts
from paceline.llm import LLM
from paceline.request import SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a checkpoint; the bundled one by default")
    for name, default in (("prompts", 12), ("max-tokens", 64), ("repeats", 3), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    llm = LLM(args.model, drafter="none", threads=args.threads, enable_prefix_caching=False)
    dtype = llm.loaded.target.config.dtype
    other = AutoModelForCausalLM.from_pretrained(llm.loaded.path, dtype=dtype).eval()
    prompts = [ids_of(llm, prompt.content) for prompt in heldout_prompts()[: args.prompts]]

    def ours(ids: list[int]) -> list[int]:
        params = SamplingParams(max_tokens=args.max_tokens, ignore_eos=True)
        return llm.generate([ids], params)[0].outputs[0].token_ids

    def theirs(ids: list[int]) -> list[int]:
        length = {"max_new_tokens": args.max_tokens, "min_new_tokens": args.max_tokens}
        asked = torch.tensor([ids])
        answer = other.generate(asked, attention_mask=torch.ones_like(asked), do_sample=False, pad_token_id=0, **length)
        return answer[0, len(ids) :].tolist()

    rounds = list(race(ours, theirs, prompts, args.repeats))
    tokens = args.max_tokens * len(prompts)
    print(
        f"{len(prompts)} prompts x {args.max_tokens} tokens, {dtype}, {args.threads} threads, medians of {len(rounds)}"
    )
    for name, side in (("paceline, plain", 0), ("transformers", 1)):
        print(f"{name:16} {median(tokens / seconds[side] for seconds in rounds):8.1f} tokens/s")
    print(f"ratio            {median(theirs / ours for ours, theirs in rounds):8.2f}")


def ids_of(llm: LLM, content: str | list[dict[str, str]]) -> list[int]:
    return llm.tokenizer.encode(content) if isinstance(content, str) else llm.tokenizer.apply_chat_template(content)


def race(
    ours: Callable[[list[int]], list[int]],
    theirs: Callable[[list[int]], list[int]],
    prompts: list[list[int]],
    repeats: int,
) -> Iterator[tuple[float, float]]:
    """Seconds of both sides in each repeat; a first round that is not counted warms both up."""
    with torch.inference_mode():
        for number in range(repeats + 1):
            seconds = [0.0, 0.0]
            for ids in prompts if number else prompts[:1]:
                for side, generate in enumerate((ours, theirs)):
                    began = time.perf_counter()
                    generate(ids)
                    seconds[side] += time.perf_counter() - began
            if number:
                yield seconds[0], seconds[1]


if __name__ == "__main__":
    main()
