"""How many held-out prompts the model answers right, greedy, from a directory of JSONL with known answers.

    python benchmarks/answers.py --data DIR [--model DIR] [--limit N] [--max-tokens 200] [--drafter mtp] [--json]

A file `SOURCE.jsonl` has one {"messages": [...]} a line; the prompt is all before the last answer. Right means, by
source: the same number behind `####` (synth_math, gsm8k); the same text (synth_skills, clinc150, assistant_basics,
factbook, wordnet); the same SQL in the code block but for white space (wikisql); a code block that Python can parse
(py_mbpp, py_stdlib), which says nothing of what it does. Of chats (taskmaster4, persona_chat, self_dialogue) only those
are counted that go in circles: a line, or 20 tokens in a row, three times. Drafters do not change the text.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from paceline.llm import LLM, Messages
from paceline.outputs import CompletionOutput
from paceline.request import SamplingParams

SPAN, TIMES = 20, 3
CHATS = ("taskmaster4", "persona_chat", "self_dialogue")


def same_number(answer: str, expected: str) -> bool:
    """The last number behind `####`, commas and units of money aside. Example: `#### $1,200` is `#### 1200.0`."""
    found, wanted = final_number(answer), final_number(expected)
    return found is not None and found == wanted


def final_number(text: str) -> float | None:
    found = re.findall(r"####\s*\$?\s*(-?[\d,]*\.?\d+)", text)
    return float(found[-1].replace(",", "")) if found else None


def same_text(answer: str, expected: str) -> bool:
    return answer.strip() == expected.strip()


def same_query(answer: str, expected: str) -> bool:
    found, wanted = code_block(answer), code_block(expected)
    return found is not None and wanted is not None and found.split() == wanted.split()


def parses(answer: str, _: str) -> bool:
    """There is a code block, closed and not empty, and it is Python."""
    code = code_block(answer)
    try:
        return code is not None and bool(ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def code_block(text: str) -> str | None:
    """What is between the first two fences."""
    found = re.search(r"```\w*\n(.*?)\n?```", text, re.DOTALL)
    return found[1] if found else None


def loops(text: str, token_ids: list[int]) -> bool:
    """A line that says something, or SPAN tokens in a row, occur TIMES times."""
    spans = (tuple(token_ids[i : i + SPAN]) for i in range(len(token_ids) - SPAN + 1))
    return most_frequent(filter(None, map(str.strip, text.splitlines()))) >= TIMES or most_frequent(spans) >= TIMES


def most_frequent(things: Iterable[Hashable]) -> int:
    return max(Counter(things).values(), default=0)


Judge = Callable[[str, str], bool]
JUDGES: dict[str, Judge] = {
    "synth_math": same_number,
    "gsm8k": same_number,
    "synth_skills": same_text,
    "clinc150": same_text,
    "assistant_basics": same_text,
    "wikisql": same_query,
    "factbook": same_text,
    "wordnet": same_text,
    "py_mbpp": parses,
    "py_stdlib": parses,
}


@dataclass(frozen=True)
class Score:
    """Counts of one source. right: None for chats; looping: None for all others. ended: by themselves, not cut off."""

    prompts: int
    right: int | None
    looping: int | None
    ended: int
    tokens: int

    def row(self, source: str) -> str:
        share = f"{self.right:5d} {self.right / self.prompts:8.3f}" if self.right is not None else f"{'-':>5} {'-':>8}"
        circles = "-" if self.looping is None else str(self.looping)
        per_answer = f"{self.ended / self.prompts:8.3f} {self.tokens / self.prompts:8.1f}"
        return f"{source:17} {self.prompts:7d} {share} {per_answer} {circles:>7}"


def score(source: str, answers: list[CompletionOutput], expected: list[str]) -> Score:
    judge = JUDGES.get(source)
    return Score(
        prompts=len(answers),
        right=sum(judge(a.text, wanted) for a, wanted in zip(answers, expected, strict=True)) if judge else None,
        looping=None if judge else sum(loops(answer.text, answer.token_ids) for answer in answers),
        ended=sum(answer.finish_reason == "stop" for answer in answers),
        tokens=sum(len(answer.token_ids) for answer in answers),
    )


def total(scores: Iterable[Score]) -> Score:
    """Of the sources whose answers can be right."""
    judged = [score for score in scores if score.right is not None]
    right = sum(score.right or 0 for score in judged)
    prompts, ended, tokens = (sum(getattr(s, name) for s in judged) for name in ("prompts", "ended", "tokens"))
    return Score(prompts, right, None, ended, tokens)


def read_rows(file: Path, limit: int | None) -> list[tuple[Messages, str]]:
    """Prompt and expected answer of the first `limit` lines."""
    lines = file.read_text(encoding="utf-8").splitlines()[:limit]
    return [split(json.loads(line)["messages"]) for line in lines if line.strip()]


def split(messages: Messages) -> tuple[Messages, str]:
    """All before the last answer, and that answer."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last], messages[last]["content"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of SOURCE.jsonl")
    parser.add_argument("--model", help="directory of a checkpoint; the bundled one by default")
    parser.add_argument("--drafter", default="mtp")
    parser.add_argument("--limit", type=int, help="first prompts of each source; all by default")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    args = parser.parse_args()
    names = [f"{source}.jsonl" for source in (*JUDGES, *CHATS)]
    args.files = [args.data / name for name in names if (args.data / name).is_file()]
    if not args.files:
        parser.error(f"{args.data} holds none of {', '.join(names)}")
    return args


def main() -> None:
    args = arguments()
    llm = LLM(args.model, drafter=args.drafter, threads=args.threads, max_num_seqs=16)
    params, scores = SamplingParams(max_tokens=args.max_tokens), {}
    table = sys.stderr if args.json else sys.stdout
    print("source            prompts right    share    ended   tokens looping", file=table)
    for file in args.files:
        prompts, expected = zip(*read_rows(file, args.limit), strict=True)
        answers = [output.outputs[0] for output in llm.chat(prompts, params)]
        scores[file.stem] = score(file.stem, answers, list(expected))
        print(scores[file.stem].row(file.stem), file=table, flush=True)
    everything = total(scores.values())
    if everything.prompts:
        print(everything.row("all but chats"), file=table)
    if args.json:
        settings = {"model": str(llm.loaded.path), "drafter": args.drafter, "max_tokens": args.max_tokens}
        by_source = {source: asdict(found) for source, found in scores.items()}
        print(json.dumps(settings | {"sources": by_source, "all": asdict(everything)}))


if __name__ == "__main__":
    main()
