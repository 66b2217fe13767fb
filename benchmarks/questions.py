"""Prompts for a model to answer in its own words, made of training text: what MTP modules learn from with
`paceline train --freeze-target`.

Of each source the same number of documents is drawn. A conversation becomes a prompt by leaving out one of the
assistant's turns, drawn too, and what follows; a plain text by its first half. --behind N puts other conversations
before it until there are N tokens, as in a long chat.

    python benchmarks/questions.py --data TRAIN --per-source 500 --seed 1 > short.jsonl
    paceline generate --json --max-tokens 256 --prompts-file short.jsonl > own/short.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from paceline.checkpoint.resolve import bundled_model
from paceline.tokenizer import Tokenizer
from paceline.train.examples import Example, jsonl_files, read_examples

Messages = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSONL file, or directory of them")
    parser.add_argument("--per-source", type=int, default=500)
    parser.add_argument("--texts", action="store_true", help="halves of plain texts instead (for generate --raw)")
    parser.add_argument("--behind", type=int, default=0, help="tokens of a prompt, at least")
    parser.add_argument("--model", type=Path, default=bundled_model(), help="whose tokens are counted")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, tokenizer = random.Random(args.seed), Tokenizer.from_dir(args.model)
    examples = chosen(list(read_examples(jsonl_files([args.data]))), args.texts, args.per_source, draw)
    for example in examples:
        if example.text is not None:
            print(json.dumps({"prompt": example.text[: len(example.text) // 2]}))
        else:
            messages = question(example.messages or [], draw)
            print(json.dumps({"messages": behind_others(messages, examples, args.behind, tokenizer, draw)}))


def chosen(examples: list[Example], texts: bool, per_source: int, draw: random.Random) -> list[Example]:
    """As many of each source, in a drawn order; of conversations those in which somebody is answered."""
    sources: dict[str, list[Example]] = {}
    for example in examples:
        if (example.text is not None) == texts and (texts or answered(example.messages or [])):
            sources.setdefault(example.source, []).append(example)
    found = [e for group in sources.values() for e in draw.sample(group, min(per_source, len(group)))]
    draw.shuffle(found)
    return found


def question(messages: Messages, draw: random.Random) -> Messages:
    """All before one of the assistant's turns."""
    return messages[: draw.choice(answered(messages))]


def answered(messages: Messages) -> list[int]:
    """The numbers of the assistant's turns, but for the very first message."""
    return [i for i, message in enumerate(messages) if message["role"] == "assistant" and i]


def behind_others(
    asked: Messages, others: list[Example], tokens: int, tokenizer: Tokenizer, draw: random.Random
) -> Messages:
    """Whole conversations before the question, until there are so many tokens."""
    while len(tokenizer.apply_chat_template(asked)) < tokens:
        asked = [*(draw.choice(others).messages or []), *asked]
    return asked


if __name__ == "__main__":
    main()
