"""xLLM's launch flags, for `paceline xllm-compat` and `python -m paceline.compat.xllm`.

xLLM starts an HTTP server. Paceline has none in this version, so the same line loads the model and its draft, tells
how it was understood, and answers prompts: those of `--prompt`, else the lines of standard input.

How contradictions are decided: what would change which model runs or who drafts is refused (another speculative
algorithm, an embedding task, a quantised cache); what only places the work (devices, processes, parallel sizes) is
noted, and one process runs the whole model; a process of rank above 0 is refused, since rank 0 does everything.

Source of names, types and defaults: xLLM's global_flags.cpp and its command-line reference.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from paceline.compat.describe import asks_for_help, help_text
from paceline.compat.flags import Flag, Line, read_line, say
from paceline.compat.start import Asked, conversation, device_of
from paceline.errors import UserError, as_exit_code

if TYPE_CHECKING:
    from paceline.llm import LLM

ALONE = "one process runs the whole model in this version"
SERVER = "the HTTP server is not in this version, prompts are read from --prompt or standard input"
EAGER = "steps run eagerly in this version"
NO_LLM_TASK = "Paceline generates text"

FLAGS = (
    Flag("model", to="model"),
    Flag("devices", help="cpu, cuda:N or gpu:N; others are noted, and the device is chosen as usual"),
    Flag("draft_model", to="draft_model", help="loaded when num_speculative_tokens is above 0"),
    Flag("draft_devices", help="a draft lives on the target's device; noted unless it equals devices"),
    Flag("num_speculative_tokens", int, to="num_speculative_tokens", default=0, help="0: no speculation"),
    Flag("speculative_algorithm", to="drafter", words={"MTP": "mtp", "mtp": "mtp"}, help="with num_speculative_tokens"),
    Flag("block_size", int, to="block_size", default=128),
    Flag("max_tokens_per_batch", int, to="max_num_batched_tokens", default=10240),
    Flag("max_seqs_per_batch", int, to="max_num_seqs", default=1024),
    Flag("enable_prefix_cache", bool, to="enable_prefix_caching", default=True),
    Flag(
        "enable_chunked_prefill",
        bool,
        fits=(True,),
        note="a prompt that finds no room in a step is always read in chunks, and the text is the same",
    ),
    Flag("max_memory_utilization", float, note="the cache has room for max_seqs_per_batch requests, up to 2 GiB"),
    Flag("max_cache_size", int, fits=(0,), note="the cache has room for max_seqs_per_batch requests, up to 2 GiB"),
    Flag("kv_cache_dtype", fits=("auto",), refuse="the cache has the model's dtype"),
    Flag("enable_mla", bool, note="the model's config.json says whether its attention is latent"),
    Flag("nnodes", int, fits=(1,), note=ALONE),
    Flag("node_rank", int, fits=(0,), refuse="rank 0 runs the whole model, so start rank 0 alone"),
    Flag("master_node_addr", note=ALONE),
    Flag("dp_size", int, fits=(1,), note=ALONE),
    Flag("ep_size", int, fits=(1,), note=ALONE),
    Flag("tp_size", int, fits=(1,), note=ALONE),
    Flag("expert_parallel_degree", int, fits=(0,), note=ALONE),
    Flag("communication_backend", note=ALONE),
    Flag("rank_tablefile", fits=("",), note=ALONE),
    Flag("enable_eplb", bool, fits=(False,), note=ALONE),
    Flag("enable_shm", bool, note=ALONE),
    Flag("host", note=SERVER),
    Flag("port", int, note=SERVER),
    Flag("model_id", note=SERVER),
    Flag("max_concurrent_requests", int, fits=(0,), note=SERVER),
    Flag("num_threads", int, note=SERVER),
    Flag("rpc_idle_timeout_s", int, note=SERVER),
    Flag("num_request_handling_threads", int, note=SERVER),
    Flag("num_response_handling_threads", int, note=SERVER),
    Flag("tool_call_parser", fits=("",), note=SERVER),
    Flag("reasoning_parser", fits=("",), note=SERVER),
    Flag("etcd_addr", fits=("",), note=SERVER),
    Flag("xservice_addr", fits=("",), note=SERVER),
    Flag("enable_service_routing", bool, fits=(False,), note=SERVER),
    Flag("enable_graph", bool, fits=(False,), note=EAGER),
    Flag("enable_acl_graph", bool, fits=(False,), note=EAGER),
    Flag("enable_prefill_piecewise_graph", bool, fits=(False,), note=EAGER),
    Flag("max_tokens_for_graph_mode", int, note=EAGER),
    Flag("enable_schedule_overlap", bool, fits=(False,), note="a step is planned when the one before it has ended"),
    Flag("prefill_scheduling_memory_usage_threshold", float, note="a request waits until its prompt has blocks"),
    Flag("enable_atb_spec_kernel", bool, fits=(False,), note="it chooses a kernel of another device"),
    Flag("enable_block_copy_kernel", bool, note="it chooses a kernel of another device"),
    Flag("priority_strategy", fits=("FCFS",), refuse="requests run first come, first served"),
    Flag("backend", fits=("llm",), refuse=NO_LLM_TASK),
    Flag("task", fits=("generate",), refuse=NO_LLM_TASK),
    Flag("enable_disagg_pd", bool, fits=(False,), refuse="one engine reads prompts and decodes"),
    Flag("instance_role", fits=("DEFAULT",), refuse="one engine reads prompts and decodes"),
    Flag("enable_kvcache_store", bool, fits=(False,), refuse="the cache is in memory"),
    Flag("host_blocks_factor", float, fits=(0.0,), refuse="the cache is on the model's device"),
    Flag("prompt", help="answer this and end (an addition of Paceline)"),
    Flag("max_tokens", int, to="max_tokens", help="most tokens of an answer (an addition of Paceline)"),
    Flag("temperature", float, to="temperature", help="0 is greedy (an addition of Paceline)"),
    Flag("seed", int, to="seed", help="same seed, same text (an addition of Paceline)"),
)
USAGE = "paceline xllm-compat --model DIR [FLAGS]: xLLM's launch flags, and what becomes of each here."


def understand(words: Sequence[str]) -> tuple[Asked, Line]:
    """xLLM's command line in our words. Raises `UserError` for what is unknown or cannot be had."""
    line = read_line(words, FLAGS, "xLLM", needed="model")
    options = line.options()
    if line.given.get("devices"):
        options["device"] = device_of(str(line.given["devices"]), line, "devices")
    if line.given.get("draft_devices", line.given.get("devices")) != line.given.get("devices"):
        line.note("draft_devices", "a draft lives on the target's device")
    _speculation(line, options)
    return Asked.of(options), line


def _speculation(line: Line, options: dict[str, Any]) -> None:
    """Who drafts: xLLM speculates when, and only when, num_speculative_tokens is above 0."""
    options["drafter"] = "mtp" if options["num_speculative_tokens"] else "none"
    if options["drafter"] == "none":
        line.note("draft_model", "it is not loaded, since num_speculative_tokens is 0")
        options.pop("draft_model", None)
    elif "draft_model" not in options:
        line.notes.append("no --draft_model is given: the model's own MTP modules draft.")


def run(words: Sequence[str]) -> None:
    """Loads, tells how the line was understood, and answers. Answers go to stdout, all else to stderr."""
    if asks_for_help(words):
        print(help_text(USAGE, FLAGS))
        return
    asked, line = understand(words)
    say(line.notes)
    llm = asked.load()
    _tell(asked, llm)
    for prompt in _prompts(line):
        for delta in llm.stream(conversation(llm, prompt), asked.params):
            print(delta.text, end="", flush=True)
        print(flush=True)


def _tell(asked: Asked, llm: LLM) -> None:
    """The options as they are in force, one a line, on stderr."""
    found = {"model": llm.loaded.path, "device": llm.loaded.target.norm.weight.device}
    for name, value in (asked.llm | found).items():
        print(f"  {name:<24}{value}", file=sys.stderr)
    print(f"Ready. {SERVER[0].upper()}{SERVER[1:]}.", file=sys.stderr)


def _prompts(line: Line) -> Iterator[str]:
    if "prompt" in line.given:
        if not str(line.given["prompt"]).strip():
            raise UserError("The prompt is empty; write something in it.")
        yield str(line.given["prompt"])
        return
    if sys.stdin.isatty():
        print("Write a prompt a line; an end of file ends.", file=sys.stderr)
    try:
        yield from (text.rstrip("\r\n") for text in sys.stdin if text.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"Standard input is not UTF-8 text ({error.reason}); convert it first.") from None


if __name__ == "__main__":
    with as_exit_code():
        run(sys.argv[1:])
