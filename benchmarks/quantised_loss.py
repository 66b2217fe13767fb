"""Held-out loss of a model in each number format, and what it is more than in plain numbers.

    python benchmarks/quantised_loss.py [--model DIR] [--data DIR] [--limit N] [--formats int8 fp8]
                                        [--threads N] [--json]

The text: the package's held-out prompts, or with --data the conversations of that directory's *.jsonl, a {"messages":
[...]} a line, answers included. Each format is quantised while loading; the MTP modules are not in the figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from paceline.assets import heldout_prompts
from paceline.bench.loss import mean_loss
from paceline.checkpoint.resolve import resolve_model
from paceline.loaded import Loaded
from paceline.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a checkpoint; the bundled one by default")
    parser.add_argument("--data", type=Path, help="directory of *.jsonl; the package's held-out prompts by default")
    parser.add_argument("--limit", type=int, default=1000, help="texts at most, of each file")
    parser.add_argument("--formats", nargs="+", default=["int8", "fp8"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path, losses = resolve_model(args.model), {}
    for form in ("none", *args.formats):
        loaded = Loaded.from_dir(path, quantization=form)
        texts = list(texts_of(loaded.tokenizer, loaded.target.config.max_position_embeddings, args.data, args.limit))
        losses[form] = mean_loss(loaded.target, texts)
    tokens = sum(len(ids) - 1 for ids in texts)
    if args.json:
        print(json.dumps({"texts": len(texts), "tokens": tokens, "loss": losses}))
        return
    print(f"{len(texts)} held-out texts, {tokens} tokens, nats a token")
    for form, loss in losses.items():
        more = "" if form == "none" else f"  {100 * (loss / losses['none'] - 1):+.3f} %"
        print(f"{form:6} {loss:.5f}{more}")


def texts_of(tokenizer: Tokenizer, context: int, data: Path | None, limit: int) -> Iterator[list[int]]:
    """Token ids, cut to the model's context."""
    if data is None:
        contents = [prompt.content for prompt in heldout_prompts()[:limit]]
    else:
        files = [file.read_text(encoding="utf-8").split("\n") for file in sorted(data.glob("*.jsonl"))]
        contents = [json.loads(line)["messages"] for lines in files for line in lines[:limit] if line]
    for content in contents:
        ids = tokenizer.encode(content) if isinstance(content, str) else tokenizer.apply_chat_template(content)
        if len(ids) > 1:
            yield ids[:context]


if __name__ == "__main__":
    main()
