"""`python -m paceline.compat.predictor`: PaddleNLP's predictor.py, with its flags, files and headings.

Reads prompts from `--data_file`, prints source, target and output of each, and writes them to `--output_file` as JSON
lines, whole or not at all. Without a data file it answers one sample prompt, as the original does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from paceline.assets import demo_prompts
from paceline.compat import paddlenlp
from paceline.compat.data_file import Example, read_examples
from paceline.compat.describe import asks_for_help, help_text
from paceline.compat.flags import Line, say
from paceline.errors import UserError, as_exit_code

if TYPE_CHECKING:
    from paceline.llm import LLM

USAGE = (
    "python -m paceline.compat.predictor --model_name_or_path DIR [FLAGS]: PaddleNLP's flags, and what each is here."
)


def run(words: Sequence[str]) -> None:
    """Answers all examples, in their order. What the user should know goes to stderr."""
    if asks_for_help(words):
        print(help_text(USAGE, paddlenlp.FLAGS))
        return
    asked, line = paddlenlp.understand(words)
    examples, target = _examples(line), Path(str(line.value("output_file")))
    say(line.notes)
    with _appearing(target) as file:
        llm = asked.load()
        prompts = _prompts(llm, examples, line)
        for example, result in zip(examples, llm.iterate(prompts, asked.params), strict=True):
            text = result.outputs[0].text
            print(f"{_heading('Source')}\n{example.question}\n{_heading('Target')}\n{example.expected}")
            print(f"{_heading('Output')}\n{text}", flush=True)
            file.write(json.dumps({"src": example.src, "tgt": example.tgt, "output": text}, ensure_ascii=False) + "\n")
    print(f"{len(examples)} answers are in {target}.", file=sys.stderr)


def _examples(line: Line) -> list[Example]:
    if "data_file" in line.given:
        return read_examples(Path(str(line.given["data_file"])))
    line.notes.append("no --data_file is given: a sample prompt is answered.")
    sample = next(prompt.question for prompt in demo_prompts() if len(prompt.content) == 1)
    return [Example(sample, "", [sample])]


def _prompts(llm: LLM, examples: Sequence[Example], line: Line) -> list[list[int]]:
    """Token ids; of a prompt longer than src_length the last ones, and a note."""
    tokenizer, limit = llm.tokenizer, paddlenlp.source_length(line)
    as_chat = tokenizer.has_chat_template and line.given.get("chat_template") != "none"
    found: list[list[int]] = []
    for number, example in enumerate(examples, 1):
        if not as_chat and len(example.turns) > 1:
            raise UserError(f"Prompt {number} has several turns, which takes a chat template; give one text each.")
        ids = tokenizer.apply_chat_template(example.messages()) if as_chat else tokenizer.encode(example.question)
        if len(ids) > limit:
            say([f"prompt {number} has {len(ids)} tokens, of which the last {limit} are kept (--src_length)."])
        found.append(ids[-limit:])
    return found


def _heading(word: str) -> str:
    return f"***********{word}**********"


@contextmanager
def _appearing(target: Path) -> Iterator[TextIO]:
    """A file that takes its name when the block ends well, and vanishes when it does not."""
    work = target.parent / f".{target.name}.{os.getpid()}"
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, "it is a directory")
        file = work.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); name another --output_file.") from None
    try:
        with file:
            yield file
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)


if __name__ == "__main__":
    with as_exit_code():
        run(sys.argv[1:])
