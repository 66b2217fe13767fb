"""`paceline generate`: text for a prompt or a file of them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import options as opt
from paceline.cli import sampling as smp
from paceline.cli.groups import grouped
from paceline.cli.prompts import Messages, collect_prompts
from paceline.errors import UserError
from paceline.request import SamplingParams

if TYPE_CHECKING:
    from paceline.llm import LLM
    from paceline.outputs import CompletionOutput


@grouped
def generate(
    *,
    prompt: Annotated[str | None, typer.Argument(help="What to answer or to continue.")] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(help="Prompts, one a line: text, or JSON with prompt or messages (.jsonl).", metavar="FILE"),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="PROMPT is a question: apply the chat template (the default if there is one)."),
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="PROMPT is text to continue: no chat template.")] = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with token ids, speculation and timing.")
    ] = False,
    model: opt.ModelChoice,
    drafting: opt.Drafting,
    modules: opt.Modules,
    lookup: opt.Lookup,
    shape: smp.Shape,
    answers: smp.Answers,
    sizes: opt.Sizes,
) -> None:
    """Generate text with speculative decoding: faster, and exactly the text that plain decoding gives."""
    opt.refuse_idle_options(drafting, modules, lookup)
    if chat and raw:
        raise UserError("--chat and --raw exclude each other; give one of them.")
    if answers.logprobs is not None and not json_lines:
        raise UserError("--logprobs shows only with --json; add it.")
    prompts, params = collect_prompts(prompt, prompts_file), smp.sampling_params(shape, answers)
    from paceline.llm import LLM

    llm = LLM(**opt.given(model), **opt.engine_options(drafting, modules, lookup, sizes))
    asked = [as_prompt(llm, content, chat, raw) for content in prompts]
    if json_lines:
        _print_json(llm, prompts, asked, params)
    elif len(asked) == params.n == 1:
        _print_stream(llm, asked[0], params)
    else:
        _print_all(llm, prompts, asked, params)


def as_prompt(llm: LLM, content: str | Messages, chat: bool, raw: bool) -> str | Messages:
    """A question becomes a conversation of one message where there is a chat template, unless --raw."""
    if not isinstance(content, str):
        if raw:
            raise UserError('--raw takes no messages; leave it out, or write "prompt" lines.')
        return content
    as_chat = chat or (not raw and llm.tokenizer.has_chat_template)
    return [{"role": "user", "content": content}] if as_chat else content


def _print_json(
    llm: LLM, contents: list[str | Messages], prompts: list[str | Messages], params: SamplingParams
) -> None:
    from paceline.outputs import as_json

    for content, result in zip(contents, llm.iterate(prompts, params), strict=True):
        for answer in result.outputs:
            row = as_json(result, answer, llm.drafter, llm.num_speculative_tokens) | {"prompt": content}
            print(json.dumps(row, ensure_ascii=False), flush=True)


def _print_stream(llm: LLM, prompt: str | Messages, params: SamplingParams) -> None:
    finished = None
    for delta in llm.stream(prompt, params):
        print(delta.text, end="", flush=True)
        finished = delta.finished
    print()
    if finished is not None and sys.stderr.isatty():
        print(summary(finished), file=sys.stderr)


def _print_all(llm: LLM, contents: list[str | Messages], prompts: list[str | Messages], params: SamplingParams) -> None:
    for content, result in zip(contents, llm.iterate(prompts, params), strict=True):
        for answer in result.outputs:
            print(f"> {content if isinstance(content, str) else content[-1]['content']}\n{answer.text}\n", flush=True)


def summary(answer: CompletionOutput) -> str:
    """One line about a finished answer."""
    stats, timing = answer.speculation, answer.timing
    speed = (
        f"{len(answer.token_ids)} tokens, {timing.tokens_per_second:.0f} tokens/s, first after {timing.ttft_ms:.0f} ms"
    )
    drafts = f", {stats.acceptance_length:.2f} tokens a verification" if stats.drafted else ""
    return f"[{speed}{drafts}, seed {answer.seed}, {answer.finish_reason}]"
