"""PaddleNLP's predictor flags: the table that `predictor` and `export_model` share, and what they mean here.

What is not given has PaddleNLP's default where it changes the text (it samples with top_p 0.7 unless told otherwise).

How contradictions are decided: another method, cache format, quantisation or decoding strategy is refused; what chooses
kernels is noted; `mode static` is noted, since the eager engine runs an exported directory as any other; lengths beyond
the model's own context are cut to it with a note, since the text cannot differ before that.

Source of names, types and defaults: PaddleNLP's llm/predict/predictor.py and its argument classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.compat.flags import Flag, Line, read_line
from paceline.compat.start import Asked, context_of, device_of
from paceline.errors import UserError

KERNEL = "it chooses a kernel there, and this engine has its own"
GRAPH = "the eager engine runs exported directories as any other"
EXACT = "verification is exact here, so nothing but the target's own tokens is accepted"
ADAPTER = "adapters are not supported in this version"
MIXED = "one quantization holds for all layers, use quant_type"
QUANTS = {"": None, "weight_only_int8": "int8", "a8w8_fp8": "fp8"}
METHODS = {"": "none", "none": "none", "None": "none", "inference_with_reference": "ngram", "mtp": "mtp"}

FLAGS = (
    Flag("model_name_or_path", to="model"),
    Flag("dtype", to="dtype"),
    Flag("device", help="cpu or gpu; others are noted, and the device is chosen as usual"),
    Flag("mode", words={"dynamic": "dynamic", "static": "static"}, fits=("dynamic",), note=GRAPH),
    Flag("quant_type", to="quantization", words=QUANTS),
    Flag("speculate_method", to="drafter", words=METHODS, default=""),
    Flag("speculate_max_draft_token_num", int, to="num_speculative_tokens", default=1),
    Flag("speculate_max_ngram_size", int, to="ngram_max", default=1, help="for inference_with_reference only"),
    Flag("draft_model_name_or_path", to="draft_model", help="for mtp only"),
    Flag("draft_model_quant_type", to="draft_quantization", words=QUANTS, help="for mtp only"),
    Flag("total_max_length", int, to="max_model_len", default=4096, help="at most the model's context"),
    Flag("max_length", int, to="max_tokens", default=1024, help="new tokens, below total_max_length"),
    Flag("min_length", int, to="min_tokens", default=1),
    Flag("src_length", int, help="longer prompts lose their beginning; total_max_length - max_length if not given"),
    Flag("batch_size", int, to="max_num_seqs", default=1, help="requests at a time"),
    Flag("block_size", int, to="block_size", default=64),
    Flag("decode_strategy", words={"sampling": "sampling", "greedy_search": "temperature 0"}, default="sampling"),
    Flag("temperature", float, to="temperature", default=0.95),
    Flag("top_p", float, to="top_p", default=0.7),
    Flag("top_k", int, to="top_k", default=0),
    Flag("repetition_penalty", float, to="repetition_penalty", default=1.0),
    Flag("data_file", help="prompts: JSON lines with src and tgt, or lines of text; a sample prompt if not given"),
    Flag("output_file", default="output.json", help="answers: JSON lines with src, tgt and output"),
    Flag(
        "chat_template",
        fits=("None", "none"),
        help="none: raw text",
        note="the template is the one of the model's tokenizer",
    ),
    Flag("inference_model", bool, note=KERNEL),
    Flag("append_attn", bool, note=KERNEL),
    Flag("block_attn", bool, note=KERNEL),
    Flag("use_flash_attention", bool, note=KERNEL),
    Flag("return_full_hidden_states", bool, note="the drafter gets the target's hidden states anyway"),
    Flag("mla_use_matrix_absorption", bool, note=KERNEL),
    Flag("avx_model", bool, fits=(False,), note=KERNEL),
    Flag("avx_type", note=KERNEL),
    Flag("avx_cachekv_type", note="the cache has the model's dtype"),
    Flag("output_via_mq", bool, note="answers need no message queue"),
    Flag("dynamic_insert", bool, note="a waiting prompt always takes the place of a finished one"),
    Flag("total_request_num", int, note="all prompts of data_file are answered"),
    Flag("speculate_verify_window", int, note=EXACT),
    Flag("speculate_max_candidate_len", int, note=EXACT),
    Flag("model_prefix", note="the names of files are those of a Hugging Face directory"),
    Flag("model_type", note="config.json tells the family"),
    Flag("cachekv_int8_type", fits=("None", ""), refuse="the cache has the model's dtype"),
    Flag("moe_quant_type", fits=("",), refuse=MIXED),
    Flag("weightonly_group_size", int, fits=(-1,), refuse="int8 weights have one scale a row"),
    Flag("weight_block_size", tuple, fits=((128, 128),), refuse="fp8 weights have blocks of 128 x 128"),
    Flag("use_fake_parameter", bool, fits=(False,), refuse="weights are those of the checkpoint"),
    Flag("benchmark", bool, fits=(False,), refuse="use `paceline bench`"),
    Flag("lora_path", fits=("", "None"), refuse=ADAPTER),
    Flag("prefix_path", fits=("", "None"), refuse=ADAPTER),
    Flag("export_precache", bool, fits=(False,), refuse=ADAPTER),
    Flag("reft", bool, fits=(False,), refuse=ADAPTER),
    Flag("reft_path", fits=("", "None"), refuse=ADAPTER),
)


def read(words: Sequence[str], flags: tuple[Flag, ...] = FLAGS) -> Line:
    """Raises `UserError` for what is unknown, missing or cannot be had."""
    return read_line(words, flags, "PaddleNLP", needed="model_name_or_path")


def understand(words: Sequence[str]) -> tuple[Asked, Line]:
    """The predictor's command line in our words."""
    line = read(words)
    options = line.options()
    if line.given.get("device"):
        options["device"] = device_of(str(line.given["device"]), line, "device")
    for part in (_speculation, _lengths, _sampling):
        part(line, options)
    return Asked.of(options), line


def _speculation(line: Line, options: dict[str, Any]) -> None:
    """Drops what the method does not look at. `inference_with_reference` tries all n-grams down to one token."""
    drafter, method = options["drafter"], line.given.get("speculate_method", "none")
    idle = f"--speculate_method {method} does not look at it"
    if drafter == "ngram":
        options["ngram_min"] = 1
    else:
        line.note("speculate_max_ngram_size", idle)
        del options["ngram_max"]
    if drafter != "mtp":
        for name, to in (("draft_model_name_or_path", "draft_model"), ("draft_model_quant_type", "draft_quantization")):
            line.note(name, idle)
            options.pop(to, None)
    if drafter == "none":
        line.note("speculate_max_draft_token_num", idle)
        options["num_speculative_tokens"] = 0


def _lengths(line: Line, options: dict[str, Any]) -> None:
    """`total_max_length` counts prompt and answer; beyond the model's context there is nothing to have."""
    if options["max_tokens"] >= options["max_model_len"]:
        raise UserError(
            f"--max_length is {options['max_tokens']}, but must be below --total_max_length {options['max_model_len']}."
        )
    context = context_of(options["model"])
    if options["max_model_len"] > context:
        line.note("total_max_length", f"this model's context is {context}, and all of it is used")
        options["max_model_len"] = context


def _sampling(line: Line, options: dict[str, Any]) -> None:
    """Greedy search, also in the two disguises that are greedy there: top_p 0 and temperature 0."""
    greedy = line.given.get("decode_strategy") == "greedy_search"
    if greedy or options["top_p"] == 0:
        why = "greedy_search does not look at it" if greedy else "top_p 0 keeps the likeliest token alone"
        for name in ("temperature", "top_p", "top_k"):
            line.note(name, why)
            options.pop(name, None)


def source_length(line: Line) -> int:
    """Most tokens of a prompt, after which its beginning is cut off."""
    length = line.value("src_length")
    if length is None:
        return int(line.value("total_max_length") - line.value("max_length"))
    if length < 1:
        raise UserError("--src_length must be at least 1.")
    return int(length)
