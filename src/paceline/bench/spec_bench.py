"""Answers in the format of Spec-Bench (github.com/hemingkx/Spec-Bench, evaluation/eval.py), so that its speed.py and
equal.py read them: a line for each question, in its first choice the turns with their times.

speed.py divides the sum of `new_tokens` by that of `wall_time`, and takes the mean of `accept_lengths`, the tokens that
each decoding step brought. equal.py compares `turns`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from paceline.bench.record import write_whole
from paceline.bench.runs import Answer, Job
from paceline.tokenizer import Tokenizer


def write_answers(
    file: Path, jobs: Sequence[Job], answers: Mapping[str, Sequence[Answer]], model: str, tokenizer: Tokenizer
) -> list[Path]:
    """A file for each arm: `answers.jsonl` becomes `answers-none.jsonl`, `answers-auto.jsonl`. Raises `UserError` when
    one cannot be written."""
    written = []
    for arm, found in answers.items():
        rows = [answer_row(job, [answer], f"{model}-{arm}", tokenizer) for job, answer in zip(jobs, found, strict=True)]
        path = arm_file(file, arm)
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        written.append(path)
    return written


def arm_file(file: Path, arm: str) -> Path:
    return file.with_name(f"{file.stem}-{arm.replace(':', '-')}{file.suffix or '.jsonl'}")


def answer_row(job: Job, turns: Sequence[Answer], model: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """A question's answers, one a turn."""
    choice = {
        "index": 0,
        "turns": [text_of(answer, tokenizer) for answer in turns],
        "decoding_steps": [len(answer.counts) for answer in turns],
        "new_tokens": [answer.output_tokens for answer in turns],
        "wall_time": [answer.times[-1] - answer.sent for answer in turns],
        "accept_lengths": [count for answer in turns for count in answer.counts],
    }
    return {
        "question_id": int(job.name) if job.name.isdecimal() else job.name,
        "category": job.source,
        "answer_id": blake2b(f"{model}/{job.name}".encode(), digest_size=11).hexdigest(),
        "model_id": model,
        "choices": [choice],
        "tstamp": time.time(),
    }


def text_of(answer: Answer, tokenizer: Tokenizer) -> str:
    text = (answer.text or "") if answer.tokens is None else tokenizer.decode(answer.tokens)
    return text.strip()
