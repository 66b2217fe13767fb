"""xLLM's launch flags, for `paceline xllm-compat` and `python -m paceline.compat.xllm`.

They start an HTTP server, as there: the one of `paceline serve`. With `--prompt` one prompt is answered instead.

How contradictions are decided: what would change which model runs or who drafts is refused (another speculative
algorithm, an embedding task, a quantised cache); what only places the work (devices, processes, parallel sizes) is
noted, and one process runs the whole model; a process of rank above 0 is refused, since rank 0 does everything.

Source of names, types and defaults: xLLM's global_flags.cpp and its command-line reference.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from paceline.compat.describe import asks_for_help, help_text
from paceline.compat.flags import Flag, Line, read_line, say
from paceline.compat.start import Asked, conversation, device_of
from paceline.errors import UserError, as_exit_code

ALONE = "one process runs the whole model in this version"
SERVER = "this server chooses its threads and timeouts itself, see `paceline serve --help`"
REGISTRY = "this server registers nowhere"
PARSER = "answers come as the model writes them"
PROMPT = "with --prompt (an addition of Paceline)"
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
    Flag("host", help="the address to listen on, 127.0.0.1 if not given"),
    Flag("port", int, default=8010, help="the port to listen on"),
    Flag("model_id", help="what clients call the model, the directory if not given"),
    Flag("max_concurrent_requests", int, fits=(0,), note="max_seqs_per_batch requests run, and 256 may wait"),
    Flag("num_threads", int, note=SERVER),
    Flag("rpc_idle_timeout_s", int, note=SERVER),
    Flag("num_request_handling_threads", int, note=SERVER),
    Flag("num_response_handling_threads", int, note=SERVER),
    Flag("tool_call_parser", fits=("",), note=PARSER),
    Flag("reasoning_parser", fits=("",), note=PARSER),
    Flag("etcd_addr", fits=("",), note=REGISTRY),
    Flag("xservice_addr", fits=("",), note=REGISTRY),
    Flag("enable_service_routing", bool, fits=(False,), note=REGISTRY),
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
    Flag("prompt", help="answer this and end, without a server (an addition of Paceline)"),
    Flag("max_tokens", int, to="max_tokens", help=PROMPT),
    Flag("temperature", float, to="temperature", help=PROMPT),
    Flag("seed", int, to="seed", help=PROMPT),
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
    if "prompt" not in line.given:
        for name in ("max_tokens", "temperature", "seed"):
            line.note(name, "it belongs to --prompt, and requests bring their own")
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
    """Serves until a signal comes, or answers the prompt. The answer goes to stdout, all else to stderr."""
    if asks_for_help(words):
        print(help_text(USAGE, FLAGS))
        return
    asked, line = understand(words)
    say(line.notes)
    for name, value in asked.llm.items():
        print(f"  {name:<24}{value}", file=sys.stderr)
    if "prompt" in line.given:
        _answer(asked, str(line.given["prompt"]))
    else:
        _serve(asked, line)


def _answer(asked: Asked, prompt: str) -> None:
    if not prompt.strip():
        raise UserError("The prompt is empty; write something in it.")
    llm = asked.load()
    for delta in llm.stream(conversation(llm, prompt), asked.params):
        print(delta.text, end="", flush=True)
    print()


def _serve(asked: Asked, line: Line) -> None:
    """As `paceline serve`. Raises `UserError` where the server's libraries are missing, or its port is taken."""
    try:
        from paceline.serve.run import run as serve
    except ImportError as error:
        raise UserError(f"The server needs {error.name}; install paceline[serve], or give --prompt.") from None
    from paceline.checkpoint.resolve import resolve_model
    from paceline.serve.settings import ServerSettings

    model = str(asked.llm["model"])
    settings = ServerSettings(
        host=str(line.given.get("host") or ServerSettings.host),
        port=line.value("port"),
        served_names=(str(line.given.get("model_id") or model),),
        options=asked.llm,
    )
    serve(resolve_model(model), settings)


if __name__ == "__main__":
    with as_exit_code():
        run(sys.argv[1:])
