"""The Python API: `LLM(...)`, `.generate`, `.chat`, `.stream`, in the shape users of other engines know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch

from paceline.checkpoint.resolve import resolve_model
from paceline.config import EngineConfig
from paceline.engine.plan import StepOutput
from paceline.errors import UserError
from paceline.loaded import Loaded
from paceline.outputs import CompletionOutput, Delta, RequestOutput
from paceline.request import Request, SamplingParams
from paceline.speculative_config import AUTO, translated
from paceline.tokenizer import IncrementalDecoder

Messages = list[dict[str, str]]
Prompt = str | list[int] | Messages
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A model, ready to generate.

    model: None (the bundled one), a directory or a Hugging Face id. drafter: "mtp", "ngram", "mtp,ngram" (the first
    is the one of requests that name none) or "none". quantization:
    "int8", "fp8" or "none"; None is what the checkpoint has (FP8 only on a GPU). Further keywords
    are those of `EngineConfig`, or vLLM's `speculative_config`, or its older `speculative_model`. Raises `UserError`
    for whatever of this cannot be had.

    Example: `LLM(drafter="mtp", num_speculative_tokens=4).generate("Once upon a time")[0].outputs[0].text`.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        drafter: str = EngineConfig.drafter,
        num_speculative_tokens: int | str = EngineConfig.num_speculative_tokens,
        *,
        dtype: str | None = None,
        device: str | None = None,
        quantization: str | None = None,
        threads: int | None = None,
        **engine_options: Any,
    ) -> None:
        options = {"drafter": drafter, "num_speculative_tokens": num_speculative_tokens, **engine_options}
        config = engine_config(EngineConfig(), options)
        if threads is not None and threads < 1:
            raise UserError("threads must be at least 1.")
        if threads is not None:
            torch.set_num_threads(threads)
        self._start(Loaded.from_dir(resolve_model(model), dtype, device, quantization), config)

    def _start(self, loaded: Loaded, config: EngineConfig) -> None:
        self.loaded, self.config, self.tokenizer = loaded, config, loaded.tokenizer
        self.engine = loaded.engine(config)
        self._ids = count()

    def with_options(self, **engine_options: Any) -> LLM:
        """Another engine on the same weights; `engine_options` change those of this one."""
        other = LLM.__new__(LLM)
        other._start(self.loaded, engine_config(self.config, engine_options))
        return other

    @property
    def drafter(self) -> str:
        return self.config.drafter

    @property
    def num_speculative_tokens(self) -> int | str:
        """Tokens drafted at a time, or "auto"; 0 for a drafter that guesses nothing."""
        k = self.config.num_speculative_tokens
        return k if k == AUTO and self.most_speculative_tokens else self.most_speculative_tokens

    @property
    def most_speculative_tokens(self) -> int:
        """Most tokens drafted at a time."""
        return min(self.config.most_speculative_tokens, self.engine.drafter.max_tokens)

    def generate(self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None) -> list[RequestOutput]:
        """One output per prompt, in their order. A prompt is text to continue, token ids, or a chat's messages.

        `sampling_params`: for all prompts, or one for each. Raises `UserError` for a prompt that is empty or too long,
        and generates nothing then."""
        return list(self.iterate(prompts, sampling_params))

    def iterate(self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None) -> Iterator[RequestOutput]:
        """As `generate`, each output as soon as it and all before it are complete. Leaving the loop aborts the rest."""
        listed = as_list(prompts)
        jobs: list[list[Request]] = []
        texts: dict[str, str] = {}
        done = 0
        for step in self._run(listed, one_each(sampling_params, len(listed)), jobs):
            if step.request.finish_reason is not None:
                texts[step.request.id] = _text(step)
            while done < len(jobs) and all(request.id in texts for request in jobs[done]):
                yield _output(listed[done], jobs[done], texts)
                done += 1

    def chat(self, messages: Messages | Sequence[Messages], sampling_params: Params = None) -> list[RequestOutput]:
        """The next message of a chat, or of each of several: a message has `role` and `content`.

        Raises `UserError` for a model without a chat template."""
        chats = as_list(messages)
        for chat in chats:
            if not is_messages(chat):
                raise UserError("A chat is a list of messages with role and content; give text to generate instead.")
        return self.generate(chats, sampling_params)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[Delta]:
        """What each step adds to the answer; the last delta holds all of it. Leaving the loop early aborts it."""
        if sampling_params is not None and sampling_params.n != 1:
            raise UserError("A stream holds one answer; set n to 1, or use generate.")
        jobs: list[list[Request]] = []
        for output in self._run([prompt], one_each(sampling_params, 1), jobs):
            request, new = output.request, len(output.tokens)
            finished = None if request.finish_reason is None else CompletionOutput.of(0, request, _text(output))
            piece = "" if output.text is None else output.text.take()
            yield Delta(piece, output.tokens, request.origins[len(request.origins) - new :], finished)

    def _run(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], jobs: list[list[Request]]
    ) -> Iterator[StepOutput]:
        """Queues all prompts, appends the requests of each to `jobs`, and steps until they end.

        Whoever stops listening, or an error on the way, aborts those that have not. The engine's steps bring news of
        all its requests, so two runs at a time would take each other's."""
        busy = self.engine.has_unfinished
        if busy:
            raise UserError("This LLM is still streaming: read that to its end or close it, or use `with_options()`.")
        try:
            for prompt, each in zip(prompts, params, strict=True):
                ids = self._encode(prompt)
                jobs.append(self.engine.add_request(str(next(self._ids)), ids, each, decoder=self._decoder))
            while self.engine.has_unfinished:
                yield from self.engine.step()
        finally:
            for request in (request for job in jobs for request in job if request.finish_reason is None):
                self.engine.abort(request.id)

    def _encode(self, prompt: object) -> list[int]:
        if not prompt:
            return []  # the engine refuses it; encoded, it might hold a bos token
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if is_ids(prompt):
            return prompt
        if not is_messages(prompt):
            raise UserError("A prompt is text, a list of token ids, or a list of messages with role and content.")
        return self.tokenizer.apply_chat_template(prompt)

    def _decoder(self) -> IncrementalDecoder:
        return IncrementalDecoder(self.tokenizer)


def engine_config(base: EngineConfig, options: dict[str, Any]) -> EngineConfig:
    """`base` with some fields changed; raises `UserError` for a field that there is not, or a draft model that
    nobody would look at."""
    known, options = [field.name for field in fields(EngineConfig)], translated(options, vars(base))
    for name in options:
        if name not in known:
            raise UserError(f"There is no option {name!r}; the engine's options are {', '.join(known)}.")
    config = replace(base, **options)
    for name in ("draft_model", "draft_quantization", "draft_window"):
        if options.get(name) is not None and "mtp" not in config.drafter.split(","):
            raise UserError(f"{name} belongs to drafter mtp, and drafter {config.drafter} would not look at it.")
    return config


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt of whatever kind, or several, as a list of prompts."""
    if isinstance(prompts, str | dict) or is_ids(prompts) or (prompts and isinstance(prompts[0], dict)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def is_ids(prompt: object) -> TypeGuard[list[int]]:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(token, int) for token in prompt)


def is_messages(prompt: object) -> TypeGuard[Messages]:
    return isinstance(prompt, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in prompt
    )


def one_each(params: Params, number: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * number
    if len(params) != number:
        raise UserError(
            f"There are {number} prompts but {len(params)} sampling parameters; give one for all, or one for each."
        )
    return list(params)


def _output(prompt: Prompt, job: list[Request], texts: dict[str, str]) -> RequestOutput:
    return RequestOutput(
        None if is_ids(prompt) else cast(str | Messages, prompt),
        job[0].tokens[: job[0].num_prompt],
        [CompletionOutput.of(index, request, texts[request.id]) for index, request in enumerate(job)],
        None if job[0].params.prompt_logprobs is None else [None, *job[0].prompt_logprobs],
    )


def _text(output: StepOutput) -> str:
    assert output.text is not None, "the request was queued with a decoder"
    return output.text.text
