"""`paceline generate`: text for a prompt or a file of them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli import options as opt
from paceline.cli import sampling as smp
from paceline.cli.prompts import Messages, collect_prompts
from paceline.errors import UserError
from paceline.request import SamplingParams

if TYPE_CHECKING:
    from paceline.llm import LLM
    from paceline.outputs import CompletionOutput


def generate(
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
    model: opt.Model = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    quantization: opt.Quantization = None,
    threads: opt.Threads = None,
    drafter: opt.Drafter = None,
    num_speculative_tokens: opt.NumSpeculativeTokens = None,
    latency_weight: opt.LatencyWeight = None,
    mtp_modules: opt.MtpModules = None,
    draft_model: opt.DraftModel = None,
    draft_quantization: opt.DraftQuantization = None,
    ngram_min: opt.NgramMin = None,
    ngram_max: opt.NgramMax = None,
    speculative_config: opt.SpeculativeConfig = None,
    temperature: smp.Temperature = SamplingParams.temperature,
    top_k: smp.TopK = SamplingParams.top_k,
    top_p: smp.TopP = SamplingParams.top_p,
    min_p: smp.MinP = SamplingParams.min_p,
    presence_penalty: smp.PresencePenalty = SamplingParams.presence_penalty,
    frequency_penalty: smp.FrequencyPenalty = SamplingParams.frequency_penalty,
    repetition_penalty: smp.RepetitionPenalty = SamplingParams.repetition_penalty,
    logit_bias: smp.LogitBias = None,
    seed: smp.Seed = None,
    stop: smp.Stop = None,
    stop_token_ids: smp.StopTokenId = None,
    ignore_eos: smp.IgnoreEos = False,
    max_tokens: smp.MaxTokens = SamplingParams.max_tokens,
    min_tokens: smp.MinTokens = SamplingParams.min_tokens,
    n: smp.Count = SamplingParams.n,
    logprobs: smp.Logprobs = None,
    json_schema: smp.JsonSchema = None,
    regex: smp.Regex = None,
    choice: smp.Choice = None,
    grammar: smp.Grammar = None,
    block_size: opt.BlockSize = None,
    num_blocks: opt.NumBlocks = None,
    max_num_seqs: opt.MaxNumSeqs = None,
    max_num_batched_tokens: opt.MaxNumBatchedTokens = None,
    max_model_len: opt.MaxModelLen = None,
    no_prefix_cache: opt.NoPrefixCache = False,
) -> None:
    """Generate text with speculative decoding: faster, and exactly the text that plain decoding gives."""
    given = locals()
    _refuse_contradictions(given)
    prompts, params = collect_prompts(prompt, prompts_file), smp.sampling_params(given)
    from paceline.llm import LLM

    llm = LLM(**opt.model_options(given), **opt.engine_options(given))
    asked = [as_prompt(llm, content, chat, raw) for content in prompts]
    if json_lines:
        _print_json(llm, prompts, asked, params)
    elif len(asked) == params.n == 1:
        _print_stream(llm, asked[0], params)
    else:
        _print_all(llm, prompts, asked, params)


def _refuse_contradictions(given: dict[str, Any]) -> None:
    opt.refuse_idle_options(given)
    rules = (
        (given["chat"] and given["raw"], "--chat and --raw exclude each other; give one of them."),
        (given["logprobs"] is not None and not given["json_lines"], "--logprobs shows only with --json; add it."),
    )
    for broken, sentence in rules:
        if broken:
            raise UserError(sentence)


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
