"""Answers in the format of Spec-Bench (github.com/hemingkx/Spec-Bench, evaluation/eval.py), so that its speed.py and
equal.py read them: a line for each question, in its first choice the turns with their times.

speed.py takes the mean over questions of the sum of `new_tokens` over that of `wall_time`, and the mean of
`accept_lengths`, the tokens that each decoding step brought. equal.py compares `turns`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from statistics import mean
from typing import Any
from warnings import warn

from paceline.bench.datasets import Prompt
from paceline.bench.record import write_whole
from paceline.bench.runs import Answer, Arm, Closed, Job
from paceline.bench.workload import encode
from paceline.errors import PacelineWarning, UserError
from paceline.request import SamplingParams
from paceline.tokenizer import Tokenizer


@dataclass(frozen=True)
class Talk:
    """A question, and the answers to its turns."""

    name: str
    source: str
    answers: Sequence[Answer]

    @property
    def said(self) -> list[object]:
        return [answer.content for answer in self.answers]


def fitting(prompts: Sequence[Prompt], tokenizer: Tokenizer, context: int) -> list[Prompt]:
    """The questions that leave room for an answer; a warning names the others. Raises `UserError` when none does."""
    long = [prompt for prompt in prompts if len(encode(prompt, tokenizer)) >= context]
    if len(long) == len(prompts):
        raise UserError(f"All questions are longer than the context of {context} tokens; give shorter ones.")
    if long:
        names = ", ".join(prompt.name for prompt in long)
        warn(f"left out, since longer than the context of {context} tokens: {names}.", PacelineWarning, stacklevel=2)
    return [prompt for prompt in prompts if prompt not in long]


def converse(arm: Arm, prompt: Prompt, params: SamplingParams, tokenizer: Tokenizer, context: int) -> Talk:
    """Asks turn after turn, each with all that was said before. A turn may fill what is left of the context; later ones
    for which nothing is left are not asked. The first one must fit."""
    content, answers = prompt.content, list[Answer]()
    for turn in [None, *prompt.turns]:
        if turn is not None:
            said = {"role": "assistant", "content": text_of(answers[-1], tokenizer)}
            assert not isinstance(content, str), "only questions have turns"
            content = [*content, said, {"role": "user", "content": turn}]
        ids = encode(replace(prompt, content=content), tokenizer)
        room = context - len(ids)
        if answers and room < 1:
            break
        job = Job(ids, replace(params, max_tokens=min(room, params.max_tokens)), prompt.name, prompt.source)
        answers += arm.run([job], Closed(1), lambda tokens: None)
    return Talk(prompt.name, prompt.source, answers)


def tokens_per_second(talks: Sequence[Talk]) -> float:
    """The mean over questions."""
    return mean(sum(a.output_tokens for a in talk.answers) / sum(map(wall_time, talk.answers)) for talk in talks)


def accepted_length(talks: Sequence[Talk]) -> float:
    """Tokens a decoding step, over all of them."""
    return mean(count for talk in talks for answer in talk.answers for count in answer.counts)


def write_answers(
    file: Path, jobs: Sequence[Job], answers: Mapping[str, Sequence[Answer]], model: str, tokenizer: Tokenizer
) -> list[Path]:
    """As `write_talks`, for requests of one turn."""
    talks = {
        arm: [Talk(job.name, job.source, [answer]) for job, answer in zip(jobs, found, strict=True)]
        for arm, found in answers.items()
    }
    return write_talks(file, talks, model, tokenizer)


def write_talks(file: Path, talks: Mapping[str, Sequence[Talk]], model: str, tokenizer: Tokenizer) -> list[Path]:
    """A file for each arm: `answers.jsonl` becomes `answers-none.jsonl`, `answers-auto.jsonl`. Raises `UserError` when
    one cannot be written."""
    written = []
    for arm, found in talks.items():
        name = arm.replace(":", "-").replace(" ", "-")
        path = file.with_name(f"{file.stem}-{name}{file.suffix or '.jsonl'}")
        rows = [answer_row(talk, f"{Path(model).name}-{name}", tokenizer) for talk in found]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        written.append(path)
    return written


def answer_row(talk: Talk, model: str, tokenizer: Tokenizer) -> dict[str, Any]:
    choice = {
        "index": 0,
        "turns": [text_of(answer, tokenizer) for answer in talk.answers],
        "decoding_steps": [len(answer.counts) for answer in talk.answers],
        "new_tokens": [answer.output_tokens for answer in talk.answers],
        "wall_time": [wall_time(answer) for answer in talk.answers],
        "accept_lengths": [count for answer in talk.answers for count in answer.counts],
    }
    return {
        "question_id": int(talk.name) if talk.name.isdecimal() else talk.name,
        "category": talk.source,
        "answer_id": blake2b(f"{model}/{talk.name}".encode(), digest_size=11).hexdigest(),
        "model_id": model,
        "choices": [choice],
        "tstamp": time.time(),
    }


def wall_time(answer: Answer) -> float:
    """Seconds from sending a request to its last token."""
    return answer.times[-1] - answer.sent


def text_of(answer: Answer, tokenizer: Tokenizer) -> str:
    text = (answer.text or "") if answer.tokens is None else tokenizer.decode(answer.tokens)
    return text.strip()
